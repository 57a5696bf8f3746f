package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/example/internal/localetcd"
	"github.com/discov-go/discov/example/user"
	"github.com/discov-go/discov/internal/output"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.yaml.in/yaml/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// asMain makes a child process of the test binary the program itself.
const asMain = "DISCOV_TEST_USERRPC"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

func startEtcd(t *testing.T) (string, *clientv3.Client) {
	t.Helper()
	etcd, err := localetcd.Start(t.Context(), "")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, etcd.Close()) })
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd.Endpoint}})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, client.Close()) })
	return etcd.Endpoint, client
}

func writeConfig(t *testing.T, format string, args ...any) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "user.yaml")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, format, args...), 0o600))
	return path
}

// program is userrpc, running.
type program struct {
	stdout, stderr output.Text
	stop           context.CancelFunc
	ended          chan error
}

func start(t *testing.T, args ...string) *program {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	p := &program{stop: cancel, ended: make(chan error, 1)}
	go func() { p.ended <- run(ctx, args, &p.stdout, &p.stderr) }()
	return p
}

func (p *program) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-p.ended:
		return err
	case <-time.After(patience):
		require.FailNow(t, "the program goes on", "%s%s", &p.stdout, &p.stderr)
		return nil
	}
}

func dial(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, conn.Close()) })
	return conn
}

func TestServesBeforeItRegistersAndWithdrawsBeforeItDrains(t *testing.T) {
	endpoint, etcd := startEtcd(t)
	file := writeConfig(t, "Name: user.rpc\nListenOn: 127.0.0.1:0\nEtcd:\n  Hosts: [%q]\n  Key: user.rpc\n", endpoint)
	program := start(t, "-f", file)
	program.stdout.WaitFor(t, "registered:")

	found, err := etcd.Get(t.Context(), "user.rpc/", clientv3.WithPrefix())
	require.NoError(t, err)
	require.Len(t, found.Kvs, 1)
	key, address := string(found.Kvs[0].Key), string(found.Kvs[0].Value)
	program.stdout.WaitFor(t, fmt.Sprintf("$ etcdctl --endpoints %s get user.rpc --prefix\n%s\n%s\n", endpoint, key, address))

	conn := dial(t, address)
	response, err := user.NewUsersClient(conn).GetUser(t.Context(), &user.GetUserRequest{Id: "1"})
	require.NoError(t, err)
	assert.Equal(t, "Ada", response.GetName())
	_, err = user.NewUsersClient(conn).GetUser(t.Context(), &user.GetUserRequest{Id: "none"})
	assert.Equal(t, codes.NotFound, status.Code(err))
	healthy, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	require.NoError(t, err)
	assert.Equal(t, grpc_health_v1.HealthCheckResponse_SERVING, healthy.GetStatus())

	program.stop()
	require.NoError(t, program.wait(t))
	written := program.stdout.String()
	withdrawn, drained := strings.Index(written, "withdrawn:"), strings.Index(written, "drained\n")
	require.True(t, withdrawn > 0 && drained > withdrawn, written)
	assert.NotContains(t, written[withdrawn:], key)
	left, err := etcd.Get(t.Context(), "user.rpc", clientv3.WithPrefix())
	require.NoError(t, err)
	assert.Empty(t, left.Kvs)
	leases, err := etcd.Leases(t.Context())
	require.NoError(t, err)
	assert.Empty(t, leases.Leases)
	_, err = net.DialTimeout("tcp", address, time.Second)
	assert.ErrorIs(t, err, syscall.ECONNREFUSED)
}

func TestOperatorsSeeWhatItDoes(t *testing.T) {
	endpoint, _ := startEtcd(t)
	program := start(t, "-f", writeConfig(t,
		"Name: user.rpc\nListenOn: 127.0.0.1:0\nAdminOn: 127.0.0.1:0\nEtcd: {Hosts: [%q], Key: user.rpc}\n", endpoint))
	program.stdout.WaitFor(t, "registered:")
	_, rest, _ := strings.Cut(program.stdout.String(), "status at ")
	site, _, _ := strings.Cut(rest, "/,")
	for path, want := range map[string]string{
		"/":        `<span class="state published">`,
		"/readyz":  "ready",
		"/metrics": `discov_publisher_state{key="user.rpc",state="published"} 1`,
	} {
		assert.Contains(t, get(t, site+path), want)
	}
	program.stop()
	require.NoError(t, program.wait(t))
}

func get(t *testing.T, url string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	require.NoError(t, err)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return string(body)
}

func TestSIGTERMEndsItsOwnEtcdAndExitsWithZero(t *testing.T) {
	folder := t.TempDir()
	command := exec.CommandContext(t.Context(), os.Args[0], "-f",
		writeConfig(t, "Name: user.rpc\nListenOn: 127.0.0.1:0\nEtcd:\n  Key: user.rpc\n"))
	command.Env = append(os.Environ(), asMain+"=1", "TMPDIR="+folder)
	var stdout, stderr output.Text
	command.Stdout, command.Stderr = &stdout, &stderr
	require.NoError(t, command.Start())
	stdout.WaitFor(t, "registered:")
	assert.Contains(t, stdout.String(), "a local etcd serves at 127.0.0.1:")
	assert.Contains(t, stdout.String(), "its data is in "+folder)

	require.NoError(t, command.Process.Signal(syscall.SIGTERM))
	require.NoError(t, command.Wait(), "%s%s", &stdout, &stderr)
	assert.Contains(t, stdout.String(), "drained\n")
	assert.NotContains(t, stderr.String(), "userrpc:")
	left, err := os.ReadDir(folder)
	require.NoError(t, err)
	assert.Empty(t, left)
}

func TestEachFailureIsOneLineAndStatus1(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	tests := map[string]struct {
		args []string
		says []string
	}{
		"taken port": {
			[]string{"-f", writeConfig(t, "Name: n\nListenOn: %s\nEtcd: {Key: k}\n", taken.Addr())},
			[]string{"ListenOn", taken.Addr().String(), "address already in use"},
		},
		"taken port of the admin's": {
			[]string{"-f", writeConfig(t, "Name: n\nListenOn: 127.0.0.1:0\nAdminOn: %s\nEtcd: {Hosts: ['127.0.0.1:1'], Key: k}\n", taken.Addr())},
			[]string{"AdminOn", taken.Addr().String(), "address already in use"},
		},
		"no such file":  {[]string{"-f", "/no/such/file"}, []string{"/no/such/file"}},
		"no such flag":  {[]string{"-g"}, []string{"-g"}},
		"argument":      {[]string{"etc/user.yaml"}, []string{`"etc/user.yaml"`}},
		"no YAML":       {[]string{"-f", writeConfig(t, "Name: [\n")}, []string{"user.yaml"}},
		"unknown field": {[]string{"-f", writeConfig(t, "Nam: n\n")}, []string{"Nam"}},
		"unknown field of etcd's": {
			[]string{"-f", writeConfig(t, "Name: n\nListenOn: :0\nEtcd: {Key: k, Host: h, Pas: p}\n")},
			[]string{`"Host"`, `"Pas"`},
		},
		"all that is wrong": {
			[]string{"-f", writeConfig(t, "Etcd: {Hosts: [h], User: u}\n")},
			[]string{"empty Name", "empty ListenOn", "Hosts[0]", "Key is empty", "Pass is not"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			command := exec.CommandContext(t.Context(), os.Args[0], test.args...)
			command.Env = append(os.Environ(), asMain+"=1")
			var stderr output.Text
			command.Stderr = &stderr
			var exit *exec.ExitError
			require.ErrorAs(t, command.Run(), &exit)
			assert.Equal(t, 1, exit.ExitCode())
			written := stderr.String()
			assert.Equal(t, 1, strings.Count(written, "\n"), written)
			assert.True(t, strings.HasPrefix(written, "userrpc: "), written)
			for _, text := range test.says {
				assert.Contains(t, written, text)
			}
		})
	}
}

func TestAnEtcdThatIsAwayIsAnErrorThatNamesTheKey(t *testing.T) {
	program := start(t, "-f", writeConfig(t,
		"Name: n\nListenOn: 127.0.0.1:0\nEtcd: {Hosts: ['127.0.0.1:1'], Key: user.rpc, Timeout: 300ms}\n"))
	require.ErrorContains(t, program.wait(t), "user.rpc")
	assert.NotContains(t, program.stdout.String(), "registered")
}

func TestHelpIsNoFailure(t *testing.T) {
	command := exec.CommandContext(t.Context(), os.Args[0], "-h")
	command.Env = append(os.Environ(), asMain+"=1")
	written, err := command.CombinedOutput()
	require.NoError(t, err)
	assert.Contains(t, string(written), "-f file")
}

func TestTheBuiltInConfigIsGood(t *testing.T) {
	config, err := parse(nil, os.Stderr)
	require.NoError(t, err)
	assert.Equal(t, "user.rpc", config.Name)
	assert.Equal(t, "127.0.0.1:8080", config.ListenOn)
	assert.Equal(t, "127.0.0.1:8081", config.AdminOn)
	assert.Equal(t, discov.Config{Key: "user.rpc"}, config.Etcd)
}

// TestTheManifestLeavesTimeToEnd: docs/kubernetes.md is for a service like this one.
func TestTheManifestLeavesTimeToEnd(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "kubernetes.md"))
	require.NoError(t, err)
	_, manifest, _ := strings.Cut(string(text), "```yaml\n")
	manifest, _, _ = strings.Cut(manifest, "```")
	var deployment struct {
		Spec struct {
			Template struct {
				Spec struct {
					Seconds    int `yaml:"terminationGracePeriodSeconds"`
					Containers []struct {
						Env   []struct{ Name string }
						Ready struct {
							Get struct{ Path string } `yaml:"httpGet"`
						} `yaml:"readinessProbe"`
					}
				}
			}
		}
	}
	require.NoError(t, yaml.Unmarshal([]byte(manifest), &deployment))
	pod := deployment.Spec.Template.Spec
	const timeout = 5 * time.Second // the default
	assert.GreaterOrEqual(t, time.Duration(pod.Seconds)*time.Second, timeout+notice+drainBound)
	require.Len(t, pod.Containers, 1)
	assert.Equal(t, "/readyz", pod.Containers[0].Ready.Get.Path)
	assert.Equal(t, "POD_IP", pod.Containers[0].Env[0].Name)
}

func TestTheHealthServiceOfTheProcessIsAsked(t *testing.T) {
	healthy := health.NewServer()
	require.NoError(t, checkHealth(t.Context(), healthy))
	healthy.Shutdown()
	require.ErrorContains(t, checkHealth(t.Context(), healthy), "the server is NOT_SERVING")
}

// A health watch is a call that never ends.
func TestDrainIsBounded(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := newServer(health.NewServer())
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	watch, err := grpc_health_v1.NewHealthClient(dial(t, listener.Addr().String())).
		Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	require.NoError(t, err)
	_, err = watch.Recv()
	require.NoError(t, err)

	assert.False(t, drain(server, 50*time.Millisecond), "a call was cut off")
	require.NoError(t, <-served)
	_, err = watch.Recv()
	require.Error(t, err)
	assert.True(t, drain(server, patience), "nothing is left to wait for")
}
