package discov_test

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func TestAGRPCValueIsWhatTheEndpointManagerWrites(t *testing.T) {
	t.Parallel()
	client := etcdtest.Start(t, etcdtest.QuickTicks()).Client(t)
	manager, err := endpoints.NewManager(client, "user.rpc")
	require.NoError(t, err)
	for i, metadata := range []any{
		nil, "zone-a", 7, map[string]any{"zone": "a", "weight": 10}, []string{"<a>", "&"}, struct{ Zone string }{"ü"},
	} {
		key := fmt.Sprintf("user.rpc/%d", i)
		require.NoError(t, manager.AddEndpoint(t.Context(), key, endpoints.Endpoint{Addr: "10.0.0.7:8080", Metadata: metadata}))
		response, err := client.Get(t.Context(), key)
		require.NoError(t, err)
		value, err := discov.GRPCValue("10.0.0.7:8080", metadata)
		require.NoError(t, err)
		require.Equal(t, string(response.Kvs[0].Value), value)
	}
}

func TestAGRPCValueOfBadInputIsAnErrorThatNamesIt(t *testing.T) {
	t.Parallel()
	for _, tried := range []struct {
		addr     string
		metadata any
		want     string
	}{
		{"", nil, `address ""`},
		{"10.0.0.7", nil, `address "10.0.0.7"`},
		{"0.0.0.0:8080", nil, `address "0.0.0.0:8080" is one to listen on`},
		{":8080", nil, `address ":8080" is one to listen on`},
		{"10.0.0.7:", nil, `address "10.0.0.7:"`},
		{"10.0.0.7:0", nil, `address "10.0.0.7:0"`},
		{"10.0.0.7:http", nil, `address "10.0.0.7:http"`},
		{"a b:1", nil, `address "a b:1"`},
		{"10.0.0.7:8080", func() {}, `metadata of "10.0.0.7:8080"`},
	} {
		_, err := discov.GRPCValue(tried.addr, tried.metadata)
		require.ErrorIs(t, err, discov.ErrValue)
		require.ErrorContains(t, err, tried.want)
	}
}

// served is a server whose calls take 20 ms, so that an abrupt end shows, and which notes when the last one came.
type served struct {
	*grpc.Server
	addr string
	last atomic.Int64 // when, in nanoseconds
	n    atomic.Int64
}

func serveCalls(t *testing.T) *served {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &served{addr: listener.Addr().String()}
	s.Server = grpc.NewServer(grpc.UnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			s.last.Store(time.Now().UnixNano())
			s.n.Add(1)
			time.Sleep(20 * time.Millisecond)
			return handle(ctx, req)
		}))
	grpc_health_v1.RegisterHealthServer(s.Server, health.NewServer())
	var serving sync.WaitGroup
	serving.Go(func() { assert.NoError(t, s.Serve(listener)) })
	t.Cleanup(func() { s.Stop(); serving.Wait() })
	return s
}

// value is what gRPC's resolver finds.
func (s *served) value(t *testing.T) string {
	t.Helper()
	value, err := discov.GRPCValue(s.addr, nil)
	require.NoError(t, err)
	return value
}

// requireLeft requires that no call came after a moment.
func (s *served) requireLeft(t *testing.T, since time.Time) {
	t.Helper()
	require.LessOrEqual(t, s.last.Load(), since.UnixNano(), "a call came %v after it was said to be gone", time.Unix(0, s.last.Load()).Sub(since))
}

// TestNoCallFailsWhileInstancesComeAndGo: gRPC's own resolver and round_robin, with a drain of one second.
func TestNoCallFailsWhileInstancesComeAndGo(t *testing.T) {
	t.Parallel()
	const drain, eventually = time.Second, 10 * time.Second
	etcd := etcdtest.Start(t, etcdtest.QuickTicks())
	publish := func(s *served) *discov.Publisher {
		p := discov.NewPublisher(etcd.Endpoints(), "user.rpc", s.value(t), discov.WithDrain(drain), discov.Quiet)
		require.NoError(t, p.KeepAlive())
		t.Cleanup(p.Stop)
		return p
	}
	first, second := serveCalls(t), serveCalls(t)
	publish(first)
	changing := publish(second)

	builder, err := resolver.NewBuilder(etcd.Client(t))
	require.NoError(t, err)
	cc, err := grpc.NewClient("etcd:///user.rpc", grpc.WithResolvers(builder),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`))
	require.NoError(t, err)
	t.Cleanup(func() { cc.Close() })
	calls := grpc_health_v1.NewHealthClient(cc)
	stop := make(chan struct{})
	var load sync.WaitGroup
	var made atomic.Int64
	for range 8 { // 8 of 20 ms are up to 400 a second
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(context.Background(), eventually)
				_, err := calls.Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true))
				cancel()
				made.Add(1)
				if !assert.NoError(t, err) {
					return
				}
			}
		})
	}
	called := func(s *served) {
		t.Helper()
		before := s.n.Load()
		etcdtest.RequireSoon(t, eventually, func() bool { return s.n.Load() > before+10 }, "it is called")
	}
	called(first)
	called(second)

	third := serveCalls(t) // one more comes
	coming := publish(third)
	called(third)

	require.NoError(t, coming.PauseContext(t.Context()))
	paused := time.Now()
	called(first)
	third.requireLeft(t, paused)
	require.NoError(t, coming.ResumeContext(t.Context()))
	called(third)

	moved := serveCalls(t) // another address
	require.NoError(t, changing.Update(t.Context(), moved.value(t)))
	called(moved)
	time.Sleep(drain)
	second.GracefulStop()

	require.NoError(t, coming.StopContext(t.Context())) // goes
	stopped := time.Now()
	third.GracefulStop()
	called(first)
	third.requireLeft(t, stopped)
	close(stop)
	load.Wait()
	t.Logf("figure: %d calls, none failed", made.Load())
}
