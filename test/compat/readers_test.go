// Package compat has other frameworks' own clients find what we publish, each at its newest release.
package compat

import (
	"context"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/go-kit/kit/endpoint"
	"github.com/go-kit/kit/sd"
	"github.com/go-kit/kit/sd/etcdv3"
	"github.com/go-kit/log"
	"github.com/stretchr/testify/require"
	gozero "github.com/zeromicro/go-zero/core/discov"
	"github.com/zeromicro/go-zero/core/logx"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"
)

const (
	key        = "user.rpc"
	eventually = 15 * time.Second
)

func TestMain(m *testing.M) {
	logx.Disable()
	os.Exit(etcdtest.Main(m))
}

// A reader returns the addresses that a framework's client knows now.
type reader func() []string

// readers are the clients, each watching key from when it is made.
var readers = map[string]struct {
	// value is what is published for an address.
	value func(addr string) string
	read  func(t *testing.T, etcd *etcdtest.Server) reader
}{
	"go-zero's Subscriber":              {plain, goZeroSubscriber},
	"gRPC's resolver":                   {forGRPC, grpcResolver},
	"etcd's endpoint manager, listing":  {forGRPC, managerList},
	"etcd's endpoint manager, watching": {forGRPC, managerWatch},
	"go-kit's Instancer":                {plain, goKitInstancer},
	"etcdctl":                           {plain, etcdctl},
}

func plain(addr string) string { return addr }

func forGRPC(addr string) string {
	value, err := discov.GRPCValue(addr, map[string]string{"zone": "a"})
	if err != nil {
		panic(err)
	}
	return value
}

func goZeroSubscriber(t *testing.T, etcd *etcdtest.Server) reader {
	subscriber, err := gozero.NewSubscriber(etcd.Endpoints(), key)
	require.NoError(t, err)
	t.Cleanup(subscriber.Close)
	return subscriber.Values
}

// addresses are what gRPC's resolver tells a ClientConn.
type addresses struct {
	gresolver.ClientConn
	mu    sync.Mutex
	known []string
}

func (a *addresses) UpdateState(state gresolver.State) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.known = nil
	for _, addr := range state.Addresses {
		a.known = append(a.known, addr.Addr)
	}
	for _, endpoint := range state.Endpoints {
		for _, addr := range endpoint.Addresses {
			if !slices.Contains(a.known, addr.Addr) {
				a.known = append(a.known, addr.Addr)
			}
		}
	}
	return nil
}

func (a *addresses) ReportError(error) {}

func (a *addresses) ParseServiceConfig(string) *serviceconfig.ParseResult { return nil }

func (a *addresses) read() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.known)
}

func grpcResolver(t *testing.T, etcd *etcdtest.Server) reader {
	builder, err := resolver.NewBuilder(etcd.Client(t))
	require.NoError(t, err)
	var known addresses
	cc, err := grpc.NewClient("etcd:///"+key, grpc.WithResolvers(observed{builder, &known}),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	cc.Connect()
	t.Cleanup(func() { cc.Close() })
	return known.read
}

// observed is a builder whose resolvers tell somebody else as well.
type observed struct {
	gresolver.Builder
	by *addresses
}

func (o observed) Build(target gresolver.Target, cc gresolver.ClientConn, opts gresolver.BuildOptions) (gresolver.Resolver, error) {
	return o.Builder.Build(target, both{cc, o.by}, opts)
}

type both struct {
	gresolver.ClientConn
	by *addresses
}

func (b both) UpdateState(state gresolver.State) error {
	_ = b.by.UpdateState(state)
	return b.ClientConn.UpdateState(state)
}

func managerList(t *testing.T, etcd *etcdtest.Server) reader {
	manager, err := endpoints.NewManager(etcd.Client(t), key)
	require.NoError(t, err)
	return func() (addrs []string) {
		found, err := manager.List(t.Context())
		require.NoError(t, err)
		for _, one := range found {
			addrs = append(addrs, one.Addr)
		}
		return addrs
	}
}

func managerWatch(t *testing.T, etcd *etcdtest.Server) reader {
	manager, err := endpoints.NewManager(etcd.Client(t), key)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	updates, err := manager.NewWatchChannel(ctx)
	require.NoError(t, err)
	var mu sync.Mutex
	known := map[string]string{}
	var watching sync.WaitGroup
	watching.Go(func() {
		for batch := range updates {
			mu.Lock()
			for _, update := range batch {
				if update.Op == endpoints.Add {
					known[update.Key] = update.Endpoint.Addr
				} else {
					delete(known, update.Key)
				}
			}
			mu.Unlock()
		}
	})
	t.Cleanup(func() { cancel(); watching.Wait() })
	return func() (addrs []string) {
		mu.Lock()
		defer mu.Unlock()
		for _, addr := range known {
			addrs = append(addrs, addr)
		}
		return addrs
	}
}

// goKitInstancer watches with a client of its own: a Register on the same one would end its watch.
func goKitInstancer(t *testing.T, etcd *etcdtest.Server) reader {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	client, err := etcdv3.NewClient(ctx, etcd.Endpoints(), etcdv3.ClientOptions{})
	require.NoError(t, err)
	instancer, err := etcdv3.NewInstancer(client, key+"/", log.NewNopLogger())
	require.NoError(t, err)
	t.Cleanup(instancer.Stop)
	var mu sync.Mutex
	known := map[string]bool{}
	factory := func(instance string) (endpoint.Endpoint, io.Closer, error) {
		mu.Lock()
		defer mu.Unlock()
		known[instance] = true
		return endpoint.Nop, closer(func() { mu.Lock(); defer mu.Unlock(); delete(known, instance) }), nil
	}
	endpointer := sd.NewEndpointer(instancer, factory, log.NewNopLogger())
	t.Cleanup(endpointer.Close)
	return func() (addrs []string) {
		mu.Lock()
		defer mu.Unlock()
		for addr := range known {
			addrs = append(addrs, addr)
		}
		return addrs
	}
}

type closer func()

func (c closer) Close() error { c(); return nil }

func etcdctl(t *testing.T, etcd *etcdtest.Server) reader {
	program := os.Getenv("ETCDCTL")
	require.NotEmpty(t, program, "ETCDCTL names the program: run make test-compat")
	return func() []string {
		cmd := exec.CommandContext(t.Context(), program, "--endpoints", etcd.Endpoints()[0], "get", key+"/", "--prefix", "--print-value-only")
		cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
		out, err := cmd.Output()
		require.NoError(t, err)
		return strings.Fields(string(out))
	}
}

// TestEachFindsExactlyWhatIsThere: two instances through all that happens to one.
func TestEachFindsExactlyWhatIsThere(t *testing.T) {
	for name, r := range readers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := etcdtest.Start(t, etcdtest.QuickTicks())
			publish := func(addr string, opts ...discov.PubOption) *discov.Publisher {
				p := discov.NewPublisher(etcd.Endpoints(), key, r.value(addr), append(opts, discov.WithTTL(2*time.Second))...)
				require.NoError(t, p.KeepAlive())
				t.Cleanup(p.Stop)
				return p
			}
			one := publish("10.0.0.1:1")
			known := r.read(t, etcd)
			finds := func(step string, want ...string) {
				t.Helper()
				var got []string
				etcdtest.RequireSoon(t, eventually, func() bool {
					got = known()
					slices.Sort(got)
					return slices.Equal(got, want)
				}, "%s: want %v", step, want)
			}
			finds("the one from before", "10.0.0.1:1")
			two := publish("10.0.0.2:2", discov.WithId(7))
			finds("one comes", "10.0.0.1:1", "10.0.0.2:2")
			require.NoError(t, two.Update(t.Context(), r.value("10.0.0.3:3")))
			finds("updated", "10.0.0.1:1", "10.0.0.3:3")
			require.NoError(t, two.PauseContext(t.Context()))
			finds("paused", "10.0.0.1:1")
			require.NoError(t, two.ResumeContext(t.Context()))
			finds("resumed", "10.0.0.1:1", "10.0.0.3:3")
			_, err := etcd.Client(t).Revoke(t.Context(), one.Status().Lease)
			require.NoError(t, err)
			etcdtest.RequireSoon(t, eventually, func() bool { return one.Stats().Registrations == 2 }, "it is back")
			finds("a lease is lost", "10.0.0.1:1", "10.0.0.3:3")
			require.NoError(t, one.StopContext(t.Context()))
			finds("stopped", "10.0.0.3:3")
			require.NoError(t, two.StopContext(t.Context()))
			finds("the last one stopped")
		})
	}
}
