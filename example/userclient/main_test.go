package main

import (
	"context"
	"flag"
	"fmt"
	"net"
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
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/discov-go/discov/internal/output"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// instance is a service that is registered, and says its name.
type instance struct {
	user.UnimplementedUsersServer
	name      string
	server    *grpc.Server
	publisher *discov.Publisher
}

func (i *instance) GetUser(_ context.Context, request *user.GetUserRequest) (*user.GetUserResponse, error) {
	return &user.GetUserResponse{Id: request.GetId(), Name: i.name}, nil
}

func startInstance(t *testing.T, etcd *localetcd.Etcd, name string) *instance {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	i := &instance{name: name, server: grpc.NewServer()}
	user.RegisterUsersServer(i.server, i)
	served := make(chan error, 1)
	go func() { served <- i.server.Serve(listener) }()
	i.publisher = discov.NewPublisher([]string{etcd.Endpoint}, "user.rpc", listener.Addr().String())
	t.Cleanup(func() {
		i.end()
		assert.NoError(t, <-served)
	})
	require.NoError(t, i.publisher.KeepAlive())
	return i
}

// end withdraws, then drains.
func (i *instance) end() {
	i.publisher.Stop()
	i.server.GracefulStop()
}

func startEtcd(t *testing.T, addr string) *localetcd.Etcd {
	t.Helper()
	etcd, err := localetcd.Start(t.Context(), addr)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, etcd.Close()) })
	return etcd
}

// startClient runs the client until the test ends, where it must end well.
func startClient(t *testing.T, args ...string) *output.Text {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out, ended := new(output.Text), make(chan error, 1)
	go func() { ended <- run(ctx, args, out, out) }()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-ended)
	})
	return out
}

func TestCallsEveryInstanceAndLosesNoCallWhenOneReplacesAnother(t *testing.T) {
	etcd := startEtcd(t, "")
	first := startInstance(t, etcd, "first")
	out := startClient(t, "-etcd", etcd.Endpoint, "-every", "5ms")
	out.WaitFor(t, "is first")
	startInstance(t, etcd, "second")
	out.WaitFor(t, "is second")
	first.end()
	before := len(out.String())
	require.Eventually(t, func() bool { return strings.Count(out.String()[before:], "is second") >= 3 },
		patience, 10*time.Millisecond)
	assert.NotContains(t, out.String(), "error", "a call failed")
}

// startService runs ../userrpc, and returns where it serves.
func startService(t *testing.T, program string, etcd *localetcd.Etcd) (service *exec.Cmd, address string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "user.yaml")
	config := fmt.Sprintf("Name: user.rpc\nListenOn: 127.0.0.1:0\nEtcd:\n  Hosts: [%q]\n  Key: user.rpc\n", etcd.Endpoint)
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	service = exec.CommandContext(t.Context(), program, "-f", file)
	out := new(output.Text)
	service.Stdout, service.Stderr = out, out
	require.NoError(t, service.Start())
	out.WaitFor(t, "registered:")
	_, address, _ = strings.Cut(out.String(), "user.rpc serves at ")
	address, _, _ = strings.Cut(address, "\n")
	return service, address
}

func TestNoCallFailsWhenTheServiceIsToldToEnd(t *testing.T) {
	program := filepath.Join(t.TempDir(), "userrpc")
	said, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../userrpc").CombinedOutput()
	require.NoError(t, err, "%s", said)
	etcd := startEtcd(t, "")
	first, at := startService(t, program, etcd)
	out := startClient(t, "-etcd", etcd.Endpoint, "-every", "2ms")
	out.WaitFor(t, "says "+at)
	second, also := startService(t, program, etcd)
	out.WaitFor(t, "says "+also)

	began := time.Now()
	require.NoError(t, first.Process.Signal(syscall.SIGTERM))
	require.NoError(t, first.Wait())
	t.Logf("figure: it ended %v after SIGTERM", time.Since(began).Round(time.Millisecond))
	before := len(out.String())
	require.Eventually(t, func() bool { return strings.Count(out.String()[before:], "says "+also) >= 10 }, patience, 10*time.Millisecond)
	assert.NotContains(t, out.String(), "error", "a call failed")
	require.NoError(t, second.Process.Signal(syscall.SIGTERM))
	require.NoError(t, second.Wait())
}

func TestGoesOnWhileThereIsNoInstance(t *testing.T) {
	etcd := startEtcd(t, "")
	out := startClient(t, "-etcd", etcd.Endpoint, "-every", "5ms")
	out.WaitFor(t, "Unavailable")
	startInstance(t, etcd, "late")
	out.WaitFor(t, "is late")
}

func TestFindsTheServiceInAnEtcdThatCameBackEmpty(t *testing.T) {
	etcd := startEtcd(t, etcdtest.FreeAddr(t))
	startInstance(t, etcd, "old").end()
	out := startClient(t, "-etcd", etcd.Endpoint, "-every", "20ms")
	out.WaitFor(t, "Unavailable")

	require.NoError(t, etcd.Close())
	again := startEtcd(t, etcd.Endpoint)
	require.Equal(t, etcd.Endpoint, again.Endpoint)
	startInstance(t, again, "new")
	out.WaitFor(t, "is new")
}

func TestTheWatchSaysWhyItEnded(t *testing.T) {
	etcd := startEtcd(t, "")
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd.Endpoint}})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, client.Close()) })
	for range 3 {
		_, err = client.Put(t.Context(), "user.rpc/1", "127.0.0.1:1")
		require.NoError(t, err)
	}
	r := &instances{etcd: client, prefix: "user.rpc/"}
	addresses, revision, err := r.list(t.Context())
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"user.rpc/1": "127.0.0.1:1"}, addresses)
	_, err = client.Compact(t.Context(), revision)
	require.NoError(t, err)
	assert.ErrorIs(t, r.watch(t.Context(), addresses, revision-1), rpctypes.ErrCompacted)
}

func TestACountEndsTheClient(t *testing.T) {
	etcd := startEtcd(t, "")
	out := new(output.Text)
	require.EqualError(t, run(t.Context(), []string{"-etcd", etcd.Endpoint, "-every", "1ms", "-n", "2"}, out, out),
		"none of 2 calls was answered")
	startInstance(t, etcd, "only")
	out = new(output.Text)
	require.NoError(t, run(t.Context(), []string{"-etcd", etcd.Endpoint, "-every", "1ms", "-n", "3"}, out, out))
	assert.Equal(t, 3, strings.Count(out.String(), "is only"))
}

func TestBadFlagsAreErrors(t *testing.T) {
	for args, want := range map[string]string{
		"-every 0s":  "-every 0s: want more than 0",
		"-n -1":      "-n -1: want 0 or more",
		"127.0.0.1":  `unexpected argument "127.0.0.1"`,
		"-endpoints": "-endpoints",
	} {
		require.ErrorContains(t, run(t.Context(), strings.Fields(args), os.Stdout, os.Stderr), want)
	}
	require.ErrorIs(t, run(t.Context(), []string{"-h"}, os.Stdout, new(output.Text)), flag.ErrHelp)
}
