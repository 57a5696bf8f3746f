SHELL := bash

GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
BUF := github.com/bufbuild/buf/cmd/buf@v1.75.0

# The library's packages, and the least share of their statements that the tests must reach together, in percent.
LIBRARY := . ./advertise ./discovhttp ./discovprom ./internal/auth ./internal/backoff ./internal/conn ./internal/etcd ./internal/stream
COVER_MIN := 95

# Where make generate writes.
OUT ?= .

# Most of the tests wait for etcd most of the time, so more of them than cores may run at once.
PARALLEL ?= 10

SEED ?= 1

# What make bench measures, and for how long.
SIZES ?= 1000,10000
STEADY ?= 70s

.PHONY: help
help: ## Show this help.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: test
test: vet test-library test-rest ## Vet, and run all tests with the race detector.

.PHONY: vet
vet:
	go vet -tags slow ./...

# The tests of the Publisher start real etcds and hold them to bounds of time, many at once, so no others run beside them.
.PHONY: test-library
test-library: COVERED = go test -race -timeout 20m -covermode atomic -coverpkg $$(echo $(LIBRARY) | tr ' ' ,)
test-library: INTO = -args -test.gocoverdir=$(CURDIR)/bin/cover
test-library:
	rm -rf bin/cover && mkdir -p bin/cover
	$(COVERED) -parallel $(PARALLEL) . $(INTO)
	$(COVERED) -p 2 $(filter-out .,$(LIBRARY)) $(INTO)
	go tool covdata textfmt -i bin/cover -o cover.out

.PHONY: test-rest
test-rest:
	go test -race -timeout 10m -p 2 $$(go list ./... | grep -vxF "$$(go list $(LIBRARY))")

.PHONY: cover
cover: test-library ## Run the library's tests, print their coverage, and fail where it is too low.
	@go tool cover -func cover.out | awk -v min=$(COVER_MIN) '/^total:/ { \
		printf "coverage: %s of the library, %d%% wanted\n", $$3, min; exit ($$3 + 0 < min) }'

.PHONY: arch
arch: ## Fail on an import that docs/design.md does not draw, and on files of one package that name each other.
	go test -count 1 ./internal/arch

.PHONY: chaos
chaos: ROUNDS ?= 20
chaos: ## Break a real etcd at random, and run the tests that take minutes: make chaos SEED=1 ROUNDS=20.
	go test -race -tags slow -run '^(TestChaos$$|TestSlow)' -parallel $(PARALLEL) -count 1 -timeout 120m . \
		-chaos.seed=$(SEED) -chaos.rounds=$(ROUNDS)

# The benchmark is a module of its own, so that what it compares with never reaches our go.mod.
.PHONY: bench
bench: ROUNDS ?= 3
bench: ## Measure beside raw clientv3 and go-zero, for 55 minutes: make bench SIZES=1000,10000 ROUNDS=3 STEADY=70s.
	@mkdir -p bin
	cd test/bench && go run . -sizes $(SIZES) -rounds $(ROUNDS) -steady $(STEADY) -out $(CURDIR)/bin/bench.json
	cd test/bench && go run ./plot -in $(CURDIR)/bin/bench.json -out $(CURDIR)/bin/bench.svg

.PHONY: test-bench
test-bench: ## Vet the benchmark, and run a small one.
	cd test/bench && go vet ./... && go test -count 1 ./...

# unpack puts a package of Debian's into a folder of bin/, without installing it.
unpack = mkdir -p bin && apt-get -qq update && cd bin && apt-get -qq -o APT::Sandbox::User=root download $(1) && dpkg -x $(1)_*.deb $(1) && rm $(1)_*.deb

# Servers of other ages are built from their modules; 3.4 is Debian's, unpacked into bin/, since an installed one starts a
# service. 3.7 is what make test runs.
SERVERS := v3.5 v3.6 v3.8

.PHONY: servers
servers:
	@set -euo pipefail; \
	mkdir -p bin; \
	for version in $(SERVERS); do (cd test/servers/$$version && go build -o $(CURDIR)/bin/etcd-$$version .); done; \
	if [ ! -x bin/etcd-v3.4 ]; then \
		($(call unpack,etcd-server)); \
		ln -s etcd-server/usr/bin/etcd bin/etcd-v3.4; \
	fi

.PHONY: test-servers
test-servers: servers ## Run the tests that suit any etcd against 3.4, 3.5, 3.6 and 3.8.
	@set -euo pipefail; \
	for version in v3.4 $(SERVERS); do \
		spared=none; if [ $$version = v3.4 ]; then spared='^TestAnyEtcdForgetsItsTokens$$'; fi; \
		bin/etcd-$$version --version | sed -n 1p; \
		ETCD_BINARY=$(CURDIR)/bin/etcd-$$version go test -race -count 1 -parallel $(PARALLEL) -timeout 10m -run '^TestAnyEtcd' -skip "$$spared" . | tee bin/any.log; \
		if grep -q 'no tests to run' bin/any.log; then echo 'no test ran' >&2; exit 1; fi; \
	done

# Other frameworks, too, have a module of their own. Debian's etcdctl is unpacked into bin/.
.PHONY: test-compat
test-compat: ## Have other frameworks' clients find what is published: go-zero, gRPC, go-kit, etcdctl.
	@set -euo pipefail; \
	etcdctl=$$(command -v etcdctl || true); \
	if [ -z "$$etcdctl" ]; then \
		etcdctl=$(CURDIR)/bin/etcd-client/usr/bin/etcdctl; \
		if [ ! -x "$$etcdctl" ]; then \
			($(call unpack,etcd-client)); \
		fi; \
	fi; \
	cd test/compat && go vet ./... && ETCDCTL=$$etcdctl go test -race -count 1 -timeout 10m ./...

# Their module has go-zero in it, which must not reach our go.mod.
.PHONY: test-strangers
test-strangers: ## Run programs as somebody writes them who has read the README.
	cd test/strangers && go vet ./... && go test -race -count 1 -timeout 10m ./...

# Prometheus is unpacked into bin/, since an installed one starts a service. A browser has too many parts for that.
.PHONY: test-operators
test-operators: bin/prometheus/usr/bin/prometheus ## Have Prometheus scrape the example, test the alerts, and look at the status page with Chromium.
	@set -euo pipefail; \
	if ! command -v chromium >/dev/null; then \
		apt-get -qq update; \
		DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium fonts-liberation >/dev/null; \
	fi; \
	cd test/operators && go vet ./... && PROMETHEUS=$(CURDIR)/bin/prometheus/usr/bin SCREENSHOT=$(SCREENSHOT) go test -race -count 1 -timeout 10m ./...

bin/prometheus/usr/bin/prometheus:
	$(call unpack,prometheus)

.PHONY: pictures
pictures: ## Draw docs/timeline.svg and docs/status.png anew, from runs of now.
	cd test/bench && go run ./timeline -out $(CURDIR)/docs/timeline.svg
	$(MAKE) test-operators SCREENSHOT=$(CURDIR)/docs/status.png

# The tests of these files, and these others, need no etcd and hardly any time.
QUICK_FILES := machine_test.go config_test.go
QUICK_TESTS := TestBadInputIsNamed|TestGoodInputOfEveryKindIsAccepted|FuzzBadInputIsNamedAndGoodInputIsUsable

.PHONY: cross
cross: ## Vet for 32-bit machines, ARM, Windows and macOS, and run a quick part of the tests as a 386 binary.
	@set -euo pipefail; \
	export CGO_ENABLED=0; \
	for system in linux/386 linux/arm windows/amd64 darwin/arm64; do \
		echo "vet for $$system"; \
		GOOS=$${system%/*} GOARCH=$${system#*/} go vet ./...; \
	done; \
	quick=$$(sed -nE 's/^func ((Test|Fuzz)[A-Za-z0-9]+)\(.*/\1/p' $(QUICK_FILES) | paste -sd '|' -); \
	echo "test as a 386 binary"; \
	GOARCH=386 go test -run "^($$quick|$(QUICK_TESTS))$$" .

# The database of known faults is on the network alone, so this is not in .ci/run.
.PHONY: vulncheck
vulncheck: ## Tell which dependencies have known faults; this needs a network.
	go run golang.org/x/vuln/cmd/govulncheck@latest ./...

.PHONY: outdated
outdated: ## Tell which of the direct dependencies have a newer release.
	@go list -m -u -f '{{if and (not .Indirect) .Update}}{{.Path}} {{.Version}}, {{.Update.Version}} is there{{end}}' all | grep . || echo 'none is behind'

.PHONY: deps
deps: ## Fail when the root package brings a module that etcd's client does not bring.
	@set -euo pipefail; \
	modules() { go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}' "$$1" | sort -u; }; \
	ours=$$(modules .); theirs=$$(modules go.etcd.io/etcd/client/v3); \
	extra=$$(comm -23 <(echo "$$ours") <(echo "$$theirs")); \
	if [ -n "$$extra" ]; then echo "the root package brings more than etcd's client:" $$extra >&2; exit 1; fi

.PHONY: lint
lint: ## Run the linters.
	go run $(GOLANGCI_LINT) run ./...

.PHONY: fmt
fmt: ## Format the code and sort its imports.
	go run $(GOLANGCI_LINT) fmt ./...

.PHONY: generate
generate: ## Make the Go code of the example's user.proto.
	cd example && go run $(BUF) generate -o $(OUT)

.PHONY: example
example: ## Run the user RPC service, with an etcd of its own.
	go run ./example/userrpc
