package discov

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// Bounds.

func TestNoCallOutlastsItsBoundWhateverEtcdDoes(t *testing.T) {
	requireNoGoroutineLeft(t)
	const timeout = 500 * time.Millisecond
	faults := map[string]func(*etcdtest.Path, *etcdtest.Server){
		"etcd is down":      func(_ *etcdtest.Path, srv *etcdtest.Server) { srv.Stop() },
		"etcd is silent":    func(path *etcdtest.Path, _ *etcdtest.Server) { path.Swallow() },
		"the path is reset": func(path *etcdtest.Path, _ *etcdtest.Server) { path.Refuse(); path.Reset() },
	}
	bounds := []struct {
		name  string
		bound time.Duration
		ctx   func(*testing.T) context.Context
	}{
		{"the timeout", timeout, func(*testing.T) context.Context { return context.Background() }},
		{"a longer deadline", 2 * timeout, func(t *testing.T) context.Context { return deadline(t, 2*timeout) }},
		{"a short deadline", time.Millisecond, func(t *testing.T) context.Context { return deadline(t, time.Millisecond) }},
		{"a cancel", 50 * time.Millisecond, func(t *testing.T) context.Context { return cancelledAfter(t, 50*time.Millisecond) }},
		{"a cancel before", 0, func(t *testing.T) context.Context { return cancelledAfter(t, 0) }},
	}
	calls := []struct {
		name  string
		reach func(*testing.T, *Publisher) // before the fault
		call  func(context.Context, *Publisher) error
	}{
		{"KeepAlive", func(*testing.T, *Publisher) {}, func(ctx context.Context, p *Publisher) error { return p.KeepAliveContext(ctx) }},
		{"Pause", keptAlive, func(ctx context.Context, p *Publisher) error { return p.PauseContext(ctx) }},
		{"Resume", keptPaused, func(ctx context.Context, p *Publisher) error { return p.ResumeContext(ctx) }},
		{"Update", keptAlive, func(ctx context.Context, p *Publisher) error { return p.Update(ctx, "other") }},
		{"Stop", keptAlive, func(ctx context.Context, p *Publisher) error { return p.StopContext(ctx) }},
	}
	for fault, strike := range faults {
		t.Run(fault, func(t *testing.T) {
			srv, path := quickPath(t)
			inTime := judge(t)
			var attempts []func()
			for _, b := range bounds {
				for _, c := range calls {
					p := newTestPublisher(t, []string{path.Endpoint()}, WithTimeout(timeout), WithTTL(time.Second))
					c.reach(t, p)
					attempts = append(attempts, func() {
						ctx, began := b.ctx(t), time.Now()
						err := c.call(ctx, p)
						took := time.Since(began)
						assert.Truef(t, inTime(took, b.bound), "%s, bounded by %s, took %v: %v", c.name, b.name, took, err)
						assert.Errorf(t, err, "%s, bounded by %s", c.name, b.name)
					})
				}
			}
			strike(path, srv)
			var running sync.WaitGroup
			for _, attempt := range attempts {
				running.Go(attempt)
			}
			running.Wait()

			// Or else each Stop at the end of the test takes its bound as well.
			srv.Start()
			path.Accept()
			path.Heal()
		})
	}
}

func keptAlive(t *testing.T, p *Publisher) {
	t.Helper()
	require.NoError(t, p.KeepAlive())
}

func keptPaused(t *testing.T, p *Publisher) {
	t.Helper()
	require.NoError(t, p.KeepAlive())
	p.Pause()
}

func cancelledAfter(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	if d == 0 {
		cancel()
	}
	timer := time.AfterFunc(d, cancel)
	t.Cleanup(func() { timer.Stop(); cancel() })
	return ctx
}

func TestAPublisherHoldsOneGoroutine(t *testing.T) {
	requireNoGoroutineLeft(t)
	srv := etcdtest.StartProcess(t, etcdtest.QuickTicks()) // its own goroutines are elsewhere
	srv.Client(t)
	const (
		n      = 50
		shared = 20 // of the connection: its transport, streams, beat and audit
	)
	before := runtime.NumGoroutine()
	pubs := make([]*Publisher, n)
	for i := range pubs {
		pubs[i] = newTestPublisher(t, srv.Endpoints())
		require.NoError(t, pubs[i].KeepAlive())
	}
	etcdtest.RequireSoon(t, eventually, func() bool { return srv.Watchers() == n })
	cost := runtime.NumGoroutine() - before
	t.Logf("%d Publishers cost %d goroutines", n, cost)
	require.LessOrEqual(t, cost, n+shared)
	require.Equal(t, 1, srv.Connections())
	require.Equal(t, 1, srv.OpenStreams("Watch"), "one stream for all")

	var stops sync.WaitGroup
	for _, p := range pubs {
		stops.Go(p.Stop)
	}
	stops.Wait()
	etcdtest.RequireSoon(t, eventually, func() bool { return runtime.NumGoroutine() <= before }, "every goroutine ends")
	srv.RequireLeases(t, 0)
}

func TestASteadyStateAsksForRenewalsOnly(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	const n = 5
	for range n {
		// A shorter TTL would have the connection examined where this machine is slow.
		p := newTestPublisher(t, srv.Endpoints(), WithTTL(5*time.Second))
		require.NoError(t, p.KeepAlive())
	}
	etcdtest.RequireSoon(t, eventually, func() bool {
		return srv.Requests()["LeaseKeepAlive.msg"] >= n && srv.Watchers() == n
	}, "steady")
	before := srv.Requests()
	etcdtest.RequireSoon(t, eventually, func() bool { return srv.Requests()["LeaseKeepAlive.msg"] >= before["LeaseKeepAlive.msg"]+2*n })

	after := srv.Requests()
	require.Less(t, after["LeaseKeepAlive.msg"], before["LeaseKeepAlive.msg"]+4*n, "one per lease and third of a TTL")
	// A machine that is late looks like a slow etcd, which is given more streams; TestPoliteAtRest counts them.
	require.LessOrEqual(t, after["LeaseKeepAlive"], 8, "streams")
	for _, counted := range []map[string]int{before, after} {
		delete(counted, "LeaseKeepAlive.msg")
		delete(counted, "LeaseKeepAlive")
	}
	require.Equal(t, before, after)
}

// Any order, from many goroutines.

func TestWhateverTheOrderOfCallsTheLastOneDecides(t *testing.T) {
	t.Parallel()
	ends := []struct {
		name   string
		call   func(context.Context, *Publisher) error
		state  State
		absent bool
	}{
		{"KeepAlive and Resume", keepAliveAndResume, StatePublished, false},
		{"Pause", func(ctx context.Context, p *Publisher) error { return p.PauseContext(ctx) }, StatePaused, true},
		{"Stop", func(ctx context.Context, p *Publisher) error { return p.StopContext(ctx) }, StateStopped, true},
		{"Pause, Update and Resume", pauseUpdateAndResume, StatePublished, false},
	}
	for _, end := range ends {
		for _, rough := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, rough path %v", end.name, rough), func(t *testing.T) {
				t.Parallel()
				srv, path := quickPath(t)
				p := newTestPublisher(t, []string{path.Endpoint()}, WithId(testID))
				// Stop is for the end: nothing comes after it.
				stress(t, p, 8, 40, func() {
					if rough && rand.IntN(20) == 0 {
						path.Reset()
					}
				})
				require.NoError(t, end.call(context.Background(), p))
				require.Equal(t, end.state, p.Status().State)
				if end.absent {
					requireAbsent(t, srv, testFullKey)
					etcdtest.RequireSoon(t, eventually, func() bool { return srv.Leases(t) == 0 })
					return
				}
				requireValue(t, srv, testFullKey, p.Status().Value)
				etcdtest.RequireSoon(t, eventually, func() bool { return srv.Leases(t) == 1 }, "one lease")
				p.Stop()
				requireNothingLeft(t, srv)
			})
		}
	}
}

func keepAliveAndResume(ctx context.Context, p *Publisher) error {
	if err := p.KeepAliveContext(ctx); err != nil && !errors.Is(err, ErrStarted) {
		return err
	}
	return p.ResumeContext(ctx)
}

func pauseUpdateAndResume(ctx context.Context, p *Publisher) error {
	if err := p.PauseContext(ctx); err != nil {
		return err
	}
	if err := p.Update(ctx, "the last value"); err != nil {
		return err
	}
	return keepAliveAndResume(ctx, p)
}

// stress makes random calls from many goroutines, none of which may outlast its bound.
func stress(t *testing.T, p *Publisher, goroutines, calls int, between func()) {
	t.Helper()
	inTime := judge(t)
	var running sync.WaitGroup
	for range goroutines {
		running.Go(func() {
			for range calls {
				between()
				name, bound, call := randomCall(p)
				began := time.Now()
				call()
				took := time.Since(began)
				assert.Truef(t, inTime(took, bound), "%s, with a bound of %v, took %v", name, bound, took)
			}
		})
	}
	running.Wait()
}

func randomCall(p *Publisher) (name string, bound time.Duration, call func()) {
	switch rand.IntN(8) {
	case 0, 1:
		return "KeepAlive", defaultTimeout, func() { _ = p.KeepAlive() }
	case 2:
		return "Pause", defaultTimeout, p.Pause
	case 3:
		return "Resume", defaultTimeout, p.Resume
	case 4:
		return "Update", defaultTimeout, func() { _ = p.Update(context.Background(), strconv.Itoa(rand.Int())) }
	case 5:
		return "Status", 0, func() { _ = p.Status() }
	default:
		bound := rand.N(20 * time.Millisecond)
		return "Pause or Resume with a deadline", bound, func() {
			ctx, cancel := context.WithTimeout(context.Background(), bound)
			defer cancel()
			if rand.IntN(2) == 0 {
				_ = p.PauseContext(ctx)
			} else {
				_ = p.ResumeContext(ctx)
			}
		}
	}
}

func TestCallsRightAfterABackgroundStartTakeDrawnWays(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	calls := []func(*Publisher){(*Publisher).Pause, (*Publisher).Resume, (*Publisher).Pause, (*Publisher).Stop}
	for range 50 {
		// The end of the test checks every change of state against the diagram.
		p := newTestPublisher(t, srv.Endpoints(), WithId(testID), WithBackgroundStart())
		require.NoError(t, p.KeepAlive())
		time.Sleep(rand.N(time.Millisecond)) // somewhere in the start
		for _, call := range calls[rand.IntN(len(calls)):] {
			call(p)
		}
		requireAbsent(t, srv, testFullKey)
	}
	requireNothingLeft(t, srv)
}

// TestWhatArrivesAfterStopLeavesNoKey: a member that was cut off for a while from its leader delivers then what it was given.
// A grant and a put that another member has answered meanwhile must not bring the key back.
func TestWhatArrivesAfterStopLeavesNoKey(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	var held sync.Map // the methods whose first request is held up
	heals := make(chan struct{})
	var late sync.WaitGroup
	hold := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		_, again := held.LoadOrStore(method, true)
		if again || method != pb.Lease_LeaseGrant_FullMethodName && method != pb.KV_Put_FullMethodName {
			return invoke(ctx, method, req, reply, cc, opts...)
		}
		late.Go(func() {
			<-heals
			if method == pb.KV_Put_FullMethodName {
				time.Sleep(100 * time.Millisecond) // in the order in which they were sent
			}
			_ = srv.Client(t).ActiveConnection().Invoke(context.WithoutCancel(ctx), method, req, reply)
		})
		<-ctx.Done()
		return ctx.Err()
	}
	p := published(t, srv.Endpoints(), Dialling(grpc.WithChainUnaryInterceptor(hold)))
	require.NoError(t, p.StopContext(deadline(t, eventually)))
	close(heals)
	late.Wait()
	requireAbsent(t, srv, testFullKey)
}

func TestStopInTheMidstOfAGrantLeavesNoLease(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	keep := newTestPublisher(t, srv.Endpoints()) // keeps the connection
	require.NoError(t, keep.KeepAlive())
	var running sync.WaitGroup
	for range 8 {
		running.Go(func() {
			for range 60 {
				p := NewPublisher(srv.Endpoints(), testKey, testValue, Quiet, WithBackgroundStart())
				assert.NoError(t, p.KeepAlive())
				time.Sleep(rand.N(2 * time.Millisecond)) // somewhere in the grant
				assert.NoError(t, p.StopContext(context.Background()))
			}
		})
	}
	running.Wait()
	keep.Stop()
	requireNothingLeft(t, srv)
}

func TestStopAmongManyCallsIsTheEnd(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	for range 20 {
		p := newTestPublisher(t, srv.Endpoints(), WithId(testID))
		var running sync.WaitGroup
		running.Go(func() { stress(t, p, 4, 10, func() {}) })
		time.Sleep(rand.N(20 * time.Millisecond)) // somewhere in the midst
		require.NoError(t, p.StopContext(context.Background()))
		require.Equal(t, StateStopped, p.Status().State)
		requireAbsent(t, srv, testFullKey)
		running.Wait()
		require.Equal(t, StateStopped, p.Status().State)
		requireAbsent(t, srv, testFullKey)
	}
	requireNothingLeft(t, srv)
}
