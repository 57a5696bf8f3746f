package discov

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
)

const (
	testKey   = "user.rpc"
	testValue = "10.0.0.7:8080"
	// testID makes the key known beforehand.
	testID      = 7
	testFullKey = "user.rpc/7"

	// slack is what a call may take over its bound.
	slack = 100 * time.Millisecond
	// eventually is for what must come, whenever.
	eventually = 10 * time.Second
)

// quickEtcd is a real etcd of the test's own.
func quickEtcd(t *testing.T, opts ...etcdtest.Option) *etcdtest.Server {
	t.Helper()
	return etcdtest.Start(t, append([]etcdtest.Option{etcdtest.QuickTicks()}, opts...)...)
}

// quickPath is the same, and a path to it.
func quickPath(t *testing.T) (*etcdtest.Server, *etcdtest.Path) {
	t.Helper()
	srv := quickEtcd(t)
	return srv, etcdtest.NewPath(t, srv.Endpoints()[0])
}

// newTestPublisher returns a Publisher without a log whose every change of state is checked at the end of the test.
func newTestPublisher(t *testing.T, endpoints []string, opts ...PubOption) *Publisher {
	t.Helper()
	p, _ := newRecordedPublisher(t, endpoints, opts...)
	return p
}

func newRecordedPublisher(t *testing.T, endpoints []string, opts ...PubOption) (*Publisher, *EventLog) {
	t.Helper()
	events := &EventLog{}
	opts = append([]PubOption{Quiet, WithObserver(events.Observe)}, opts...)
	p := NewPublisher(endpoints, testKey, testValue, opts...)
	t.Cleanup(func() {
		p.Stop()
		events.requireDrawn(t)
	})
	return p, events
}

// published returns a Publisher that is registered under testFullKey.
func published(t *testing.T, endpoints []string, opts ...PubOption) *Publisher {
	t.Helper()
	p := newTestPublisher(t, endpoints, append([]PubOption{WithId(testID)}, opts...)...)
	require.NoError(t, p.KeepAliveContext(deadline(t, eventually))) // a short timeout is for the test to meet
	return p
}

// rooted is a server, of whatever kind, with a client that may do everything.
type rooted interface {
	Client(testing.TB) *clientv3.Client
}

// lookUp returns the key as etcd has it now, nil where it has none.
func lookUp(t *testing.T, srv rooted, key string) *mvccpb.KeyValue {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), eventually)
	defer cancel()
	response, err := srv.Client(t).Get(ctx, key)
	require.NoError(t, err)
	if len(response.Kvs) == 0 {
		return nil
	}
	return response.Kvs[0]
}

func requireValue(t *testing.T, srv rooted, key, value string) *mvccpb.KeyValue {
	t.Helper()
	kv := lookUp(t, srv, key)
	require.NotNilf(t, kv, "%s is not in etcd", key)
	require.Equal(t, value, string(kv.Value))
	return kv
}

func requireAbsent(t *testing.T, srv rooted, key string) {
	t.Helper()
	require.Nilf(t, lookUp(t, srv, key), "%s is in etcd", key)
}

// putByAnother puts the key as another instance does, under a lease of its own, which it returns.
func putByAnother(t *testing.T, srv rooted, key, value string) clientv3.LeaseID {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), eventually)
	defer cancel()
	grant, err := srv.Client(t).Grant(ctx, 60)
	require.NoError(t, err)
	_, err = srv.Client(t).Put(ctx, key, value, clientv3.WithLease(grant.ID))
	require.NoError(t, err)
	return grant.ID
}

func deleteByHand(t *testing.T, srv rooted, key string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), eventually)
	defer cancel()
	_, err := srv.Client(t).Delete(ctx, key)
	require.NoError(t, err)
}

func revokeByHand(t *testing.T, srv rooted, lease clientv3.LeaseID) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), eventually)
	defer cancel()
	_, err := srv.Client(t).Revoke(ctx, lease)
	require.NoError(t, err)
}

// later makes a call in the background.
func later(call func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- call() }()
	return done
}

func awaitState(t *testing.T, p *Publisher, state State) {
	t.Helper()
	etcdtest.RequireSoon(t, eventually, func() bool { return p.Status().State == state }, "state ", state)
}

// requireIdle demands that a KeepAlive that has failed has cleaned up; on a late machine its bound came first.
func requireIdle(t *testing.T, p *Publisher) {
	t.Helper()
	etcdtest.RequireSoon(t, slack, func() bool { return p.Status().State == StateIdle }, "idle")
}

// awaitLeases waits until there are n, for a second: one that was asked for twice is revoked once the key is there.
func awaitLeases(t *testing.T, srv *etcdtest.Server, n int) {
	t.Helper()
	etcdtest.RequireSoon(t, time.Second, func() bool { return srv.Leases(t) == n }, "%d leases", n)
}

func awaitValue(t *testing.T, srv rooted, key, value string) {
	t.Helper()
	etcdtest.RequireSoon(t, eventually, func() bool {
		kv := lookUp(t, srv, key)
		return kv != nil && string(kv.Value) == value
	}, key, " is ", value)
}

// requireStays checks for a while: what must not happen would come at once.
func requireStays(t *testing.T, check func()) {
	t.Helper()
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		check()
	}
}

// requireNothingLeft fails the test where the Publishers of it have left anything in etcd.
func requireNothingLeft(t *testing.T, srv *etcdtest.Server) {
	t.Helper()
	srv.RequireLeases(t, 0)
	requireNobodyThere(t, srv)
}

// requireNobodyThere waits for the server to notice that its clients are gone.
func requireNobodyThere(t *testing.T, srv *etcdtest.Server) {
	t.Helper()
	etcdtest.RequireSoon(t, eventually, func() bool {
		return srv.Watchers() == 0 && srv.OpenStreams("Watch") == 0 && srv.OpenStreams("LeaseKeepAlive") == 0 && srv.Connections() == 0
	}, "no watcher, stream or connection is left")
}

// requireNoGoroutineLeft checks, at the end of a test that is not parallel, that it has left no goroutine. It is to be
// called first.
func requireNoGoroutineLeft(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}

// requireWithin fails the test where the call outlasts its bound.
func requireWithin(t *testing.T, bound time.Duration, call func()) {
	t.Helper()
	inTime := judge(t)
	began := time.Now()
	call()
	took := time.Since(began)
	require.Truef(t, inTime(took, bound), "the call took %v, its bound is %v", took, bound)
}

// judge returns what says whether a call has kept its bound. It measures meanwhile how late this machine wakes a
// goroutine, which is not the library's fault: a call passes several.
func judge(t *testing.T) func(took, bound time.Duration) bool {
	t.Helper()
	const (
		nap     = 5 * time.Millisecond
		wakings = 10
	)
	var latest atomic.Int64
	ctx, cancel := context.WithCancel(context.Background())
	var measuring sync.WaitGroup
	measuring.Go(func() {
		for ctx.Err() == nil {
			began := time.Now()
			time.Sleep(nap)
			latest.Store(max(latest.Load(), int64(time.Since(began)-nap)))
		}
	})
	t.Cleanup(func() { cancel(); measuring.Wait() })
	return func(took, bound time.Duration) bool {
		if took <= bound+slack {
			return true
		}
		time.Sleep(2 * nap) // a standstill of now is known after it
		return took <= bound+slack+wakings*time.Duration(latest.Load())
	}
}

// deadline is a context with one.
func deadline(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
