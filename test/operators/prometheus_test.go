// Package operators_test has the programs of those who run services look at what discov gives them: Prometheus and a browser.
package operators_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/discov-go/discov/internal/output"
	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	etcdtest.RunIfChild()
	os.Exit(m.Run())
}

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// monitoring is the folder of the alerts.
var monitoring = filepath.Join("..", "..", "docs", "monitoring")

// prometheus returns a program of Prometheus's.
func prometheus(t *testing.T, program string) string {
	t.Helper()
	folder := os.Getenv("PROMETHEUS")
	require.NotEmpty(t, folder, "PROMETHEUS is the folder of prometheus and promtool: make test-operators")
	return filepath.Join(folder, program)
}

func TestTheAlertsRingWhenTheyShould(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"check", "rules", filepath.Join(monitoring, "alerts.yml")},
		{"test", "rules", filepath.Join(monitoring, "alerts_test.yml")},
	} {
		out, err := exec.CommandContext(t.Context(), prometheus(t, "promtool"), args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
}

func TestPrometheusScrapesTheExample(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	example := filepath.Join(folder, "userrpc")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", example, "./example/userrpc")
	build.Dir = filepath.Join("..", "..")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	config := write(t, folder, "user.yaml", "Name: user.rpc\nListenOn: 127.0.0.1:0\nAdminOn: 127.0.0.1:0\nEtcd: {Key: user.rpc}\n")
	admin := start(t, example, "-f", config).find(`metrics at http://(\S+)/metrics`)

	rules, err := filepath.Abs(filepath.Join(monitoring, "alerts.yml"))
	require.NoError(t, err)
	config = write(t, folder, "prometheus.yml", fmt.Sprintf(
		"global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [%q]\nscrape_configs: [{job_name: user, static_configs: [{targets: [%q]}]}]\n", rules, admin))
	api := "http://" + etcdtest.FreeAddr(t)
	start(t, prometheus(t, "prometheus"), "--config.file", config, "--storage.tsdb.path", filepath.Join(folder, "data"),
		"--web.listen-address", strings.TrimPrefix(api, "http://"))

	etcdtest.RequireSoon(t, patience, func() bool {
		return value(api, `discov_publisher_state{key="user.rpc",state="published"}`) == "1"
	}, "the state is scraped")
	for query, want := range map[string]string{
		`up{job="user"}`:                            "1",
		`discov_publishers`:                         "1",
		`discov_connections`:                        "1",
		`count({__name__=~"discov_.+",job="user"})`: "25",
		`discov_publisher_registrations_total`:      "1",
		`count(discov_publisher_losses_total == 0)`: "7",
		`clamp_max(floor(discov_publisher_lease_expiry_timestamp_seconds - time()), 0)`: "0",
	} {
		etcdtest.RequireSoon(t, patience, func() bool { return value(api, query) == want }, "%s is %s", query, want)
	}
	var loaded struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Name, Health, State string }
			}
		}
	}
	etcdtest.RequireSoon(t, patience, func() bool {
		require.NoError(t, ask(api+"/api/v1/rules", &loaded))
		if len(loaded.Data.Groups) != 1 {
			return false
		}
		rules := loaded.Data.Groups[0].Rules
		for _, r := range rules {
			if r.Health != "ok" || r.State != "inactive" {
				return false
			}
		}
		return len(rules) == 8
	}, "all alerts are evaluated, and none rings: %v", &loaded)
}

// ask decodes what Prometheus answers.
func ask(where string, into any) error {
	response, err := http.Get(where) //nolint:gosec,noctx // it is our own, and bounded by RequireSoon
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return json.NewDecoder(response.Body).Decode(into)
}

// value is the value of a query with one result, empty where it has none.
func value(api, query string) string {
	var answer struct {
		Data struct {
			Result []struct {
				Value []any
			}
		}
	}
	if ask(api+"/api/v1/query?query="+url.QueryEscape(query), &answer) != nil || len(answer.Data.Result) != 1 {
		return ""
	}
	return fmt.Sprint(answer.Data.Result[0].Value[1])
}

func write(t *testing.T, folder, name, text string) string {
	t.Helper()
	path := filepath.Join(folder, name)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// A program is a child process, ended by SIGTERM with the test.
type program struct {
	output.Text
	t *testing.T
}

func start(t *testing.T, path string, args ...string) *program {
	t.Helper()
	p := &program{t: t}
	ctx, cancel := context.WithCancel(context.Background())
	command := exec.CommandContext(ctx, path, args...)
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	command.WaitDelay = patience
	command.Stdout, command.Stderr = &p.Text, &p.Text
	require.NoError(t, command.Start())
	t.Cleanup(func() {
		cancel()
		_ = command.Wait() // told to end
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(path), &p.Text)
		}
	})
	return p
}

// find waits until the program writes what matches, and returns the match.
func (p *program) find(pattern string) (match string) {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	etcdtest.RequireSoon(p.t, patience, func() bool {
		found := re.FindStringSubmatch(p.String())
		if found == nil {
			return false
		}
		match = found[1]
		return true
	}, "%s in what was written", pattern)
	return match
}
