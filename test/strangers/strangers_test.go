// Package strangers has programs as somebody writes them who has read the README and no more, and runs them.
package strangers

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/discov-go/discov/internal/output"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	etcdtest.RunIfChild()
	os.Exit(m.Run())
}

// A program is a stranger's, running.
type program struct {
	t       *testing.T
	command *exec.Cmd
	output.Text
}

// start builds a program and runs it.
func start(t *testing.T, name string, args ...string) *program {
	t.Helper()
	binary := filepath.Join(t.TempDir(), name)
	built, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./"+name).CombinedOutput()
	require.NoError(t, err, "%s", built)
	p := &program{t: t, command: exec.Command(binary, args...)} //nolint:noctx // ended below
	p.command.Stdout, p.command.Stderr = &p.Text, &p.Text
	require.NoError(t, p.command.Start())
	t.Cleanup(func() {
		if t.Failed() {
			_ = p.command.Process.Kill() // where it was not told to end
			_ = p.command.Wait()
			t.Logf("%s:\n%s", name, &p.Text)
		}
	})
	return p
}

// end tells it to end, and returns what it has written.
func (p *program) end() string {
	p.t.Helper()
	require.NoError(p.t, p.command.Process.Signal(syscall.SIGTERM))
	require.NoError(p.t, p.command.Wait(), "%s", &p.Text)
	return p.String()
}

// found waits until one instance is found at the key, and returns its value.
func found(t *testing.T, o *etcdtest.Observer, key string) (value string) {
	t.Helper()
	etcdtest.RequireSoon(t, patience, func() bool {
		keys := o.Keys(t)
		for at, kv := range keys {
			if strings.HasPrefix(at, key+"/") {
				value = kv.Value
			}
		}
		return len(keys) == 1 && value != ""
	}, "one instance at %s", key)
	return value
}

func TestAnHTTPService(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.QuickTicks())
	observer := etcdtest.Observe(t, etcd, "user.http")
	service := start(t, "httpservice", "-etcd", etcd.Endpoints()[0])
	site := "http://" + found(t, observer, "user.http")
	for path, want := range map[string]string{
		"/hello":         "hello",
		"/discov/readyz": "ready",
		"/discov/":       "published for",
		"/metrics":       `discov_publisher_state{key="user.http",state="published"} 1`,
	} {
		etcdtest.RequireSoon(t, patience, func() bool { return strings.Contains(get(t, site+path), want) }, "%s says %q", path, want)
	}
	service.end()
	require.Empty(t, observer.Keys(t))
	require.Zero(t, etcd.Leases(t))
}

func get(t *testing.T, url string) string {
	t.Helper()
	response, err := http.Get(url) //nolint:gosec,noctx // it is our own
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return string(text)
}

func TestAGoZeroServiceThatWasMigrated(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.QuickTicks())
	observer := etcdtest.Observe(t, etcd, "user.rpc")
	listenOn := etcdtest.FreeAddr(t)
	config := filepath.Join(t.TempDir(), "user.yaml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil,
		"Name: user.rpc\nListenOn: %s\nLog: {Mode: console}\nRegistry: {Hosts: [%q], Key: user.rpc}\n", listenOn, etcd.Endpoints()[0]), 0o600))
	service := start(t, "zrpcservice", "-f", config)
	addr := found(t, observer, "user.rpc")
	require.Equal(t, listenOn, addr)
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err = grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true))
	require.NoError(t, err)

	require.NoError(t, service.command.Process.Signal(syscall.SIGTERM))
	etcdtest.RequireSoon(t, patience, func() bool { return len(observer.Keys(t)) == 0 }, "withdrawn")
	_ = service.command.Wait() // go-zero ends itself by the signal
}

// TestTheReadmesCodeCompiles: as the body of a function that has a context and a server.
func TestTheReadmesCodeCompiles(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	require.NoError(t, err)
	_, code, _ := strings.Cut(string(readme), "```go\n")
	code, _, _ = strings.Cut(code, "```")
	require.Contains(t, code, "discov.NewPublisher(")
	folder, err := os.MkdirTemp(".", "readme") // in this module, for its go.mod
	require.NoError(t, err)
	defer os.RemoveAll(folder)
	program := `package main

import (
	"context"
	"net"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/advertise"
	"google.golang.org/grpc"
)

func main() { _ = run }

func run(ctx context.Context, server *grpc.Server) error {
` + code + `	return nil
}
`
	require.NoError(t, os.WriteFile(filepath.Join(folder, "main.go"), []byte(program), 0o600))
	out, err := exec.CommandContext(t.Context(), "go", "vet", "./"+folder).CombinedOutput()
	require.NoError(t, err, "%s\n%s", out, program)
}

func TestAScript(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.QuickTicks())
	observer := etcdtest.Observe(t, etcd, "printer")
	script := start(t, "script", "-etcd", etcd.Endpoints()[0], "-key", "printer", "-value", "10.0.0.9:631")
	require.Equal(t, "10.0.0.9:631", found(t, observer, "printer"))
	script.WaitFor(t, `"state":"published"`)
	var states []string
	for line := range strings.Lines(script.end()) {
		var status struct{ State, Key, Value, Lease, Until string }
		if json.Unmarshal([]byte(line), &status) != nil {
			continue // the log's
		}
		states = append(states, status.State)
		require.Equal(t, "10.0.0.9:631", status.Value)
		if status.State == "published" {
			require.Equal(t, "printer/"+status.Lease, status.Key)
		}
	}
	require.Contains(t, states, "published")
	require.Empty(t, observer.Keys(t))
}
