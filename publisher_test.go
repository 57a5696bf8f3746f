package discov

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

// KeepAlive.

func TestKeepAliveReturnsWhenTheKeyIsInEtcd(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := newTestPublisher(t, srv.Endpoints())
	require.NoError(t, p.KeepAlive())

	s := p.Status()
	require.Equal(t, testKey+"/"+strconv.FormatInt(int64(s.Lease), 10), s.Key)
	kv := requireValue(t, srv, s.Key, testValue)
	require.Equal(t, int64(s.Lease), kv.Lease)
	srv.RequireLeases(t, 1)
}

func TestAFirstRegistrationCostsOneGrantAndOnePut(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	published(t, srv.Endpoints())

	etcdtest.RequireSoon(t, eventually, func() bool { return srv.Watchers() == 1 })
	got := srv.Requests()
	delete(got, "Watch") // begins when KeepAlive returns
	delete(got, "Watch.msg")
	delete(got, "Watch.create")
	require.Equal(t, map[string]int{"LeaseGrant": 1, "Put": 1}, got)
}

func TestASecondKeepAliveReturnsErrStarted(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints())
	before := requireValue(t, srv, testFullKey, testValue)

	require.ErrorIs(t, p.KeepAlive(), ErrStarted)
	require.Equal(t, before, requireValue(t, srv, testFullKey, testValue))
}

func TestASecondKeepAliveWhileTheFirstRunsReturnsErrStartedAtOnce(t *testing.T) {
	t.Parallel()
	_, path := quickPath(t)
	path.Swallow()
	p := newTestPublisher(t, []string{path.Endpoint()})
	first := later(p.KeepAlive)
	awaitState(t, p, StateRegistering)

	requireWithin(t, 0, func() { require.ErrorIs(t, p.KeepAlive(), ErrStarted) })
	path.Heal()
	require.NoError(t, <-first)
}

func TestOfManyKeepAlivesAtOnceOneRegisters(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := newTestPublisher(t, srv.Endpoints())
	errs := make(chan error, 20)
	for range cap(errs) {
		go func() { errs <- p.KeepAlive() }()
	}
	registered := 0
	for range cap(errs) {
		if err := <-errs; err != nil {
			require.ErrorIs(t, err, ErrStarted)
		} else {
			registered++
		}
	}
	require.Equal(t, 1, registered)
	srv.RequireLeases(t, 1)
}

func TestKeepAliveThatFailsLeavesNothingBehind(t *testing.T) {
	requireNoGoroutineLeft(t)
	srv, path := quickPath(t)
	path.Swallow()
	p, events := newRecordedPublisher(t, []string{path.Endpoint()}, WithId(testID), WithTimeout(300*time.Millisecond))

	requireWithin(t, 300*time.Millisecond, func() {
		err := p.KeepAlive()
		require.ErrorContains(t, err, "discov: ")
		require.ErrorContains(t, err, testFullKey)
	})
	s := p.Status()
	require.Equal(t, StateIdle, s.State)
	require.Error(t, s.Err)
	require.Zero(t, s.Lease)
	require.Zero(t, s.TTL)
	require.Zero(t, s.Until)
	etcdtest.RequireSoon(t, eventually, func() bool { return len(events.changes()) == 2 })
	require.Equal(t, []State{StateRegistering, StateIdle}, events.states())
	etcdtest.RequireSoon(t, eventually, func() bool { return path.Connections() == 0 }, "the connection is closed")
	require.Empty(t, connections.conns)

	path.Heal()
	requireAbsent(t, srv, testFullKey)
	srv.RequireLeases(t, 0)
}

func TestKeepAliveMayBeCalledAgainAfterAFailure(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	srv.Stop()
	p := newTestPublisher(t, srv.Endpoints(), WithId(testID), WithTimeout(500*time.Millisecond))
	for range 2 {
		err := p.KeepAlive()
		require.ErrorContains(t, err, "connection refused")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, p.Status().Err, "connection refused")
	}
	srv.Start()
	etcdtest.RequireSoon(t, eventually, func() bool { return p.KeepAlive() == nil })
	requireValue(t, srv, testFullKey, testValue)
	require.Equal(t, StatePublished, p.Status().State)
	require.NoError(t, p.Status().Err)
	p.Stop()
	requireAbsent(t, srv, testFullKey)
	requireNothingLeft(t, srv)
}

func TestAContextBoundsKeepAliveAndNotTheRegistration(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := newTestPublisher(t, srv.Endpoints(), WithId(testID), WithTTL(time.Second))
	ctx, cancel := context.WithTimeout(context.Background(), eventually)
	require.NoError(t, p.KeepAliveContext(ctx))
	until := p.Status().Until
	cancel()

	etcdtest.RequireSoon(t, eventually, func() bool { return p.Status().Until.After(until.Add(time.Second)) }, "it is renewed")
	require.Equal(t, StatePublished, p.Status().State)
	requireValue(t, srv, testFullKey, testValue)
}

func TestStopCutsAKeepAliveShort(t *testing.T) {
	t.Parallel()
	srv, path := quickPath(t)
	path.Swallow()
	p := newTestPublisher(t, []string{path.Endpoint()}, WithId(testID), WithTTL(time.Second))
	first := later(p.KeepAlive)
	awaitState(t, p, StateRegistering)

	_ = p.StopContext(deadline(t, 100*time.Millisecond))
	select {
	case err := <-first:
		require.ErrorIs(t, err, ErrStopped)
	case <-time.After(time.Second):
		require.Fail(t, "KeepAlive goes on after Stop")
	}
	path.Heal()
	p.Stop()
	requireAbsent(t, srv, testFullKey)
	requireNothingLeft(t, srv)
}

func TestPauseMakesAKeepAliveThatRunsReturnNil(t *testing.T) {
	t.Parallel()
	srv, path := quickPath(t)
	path.Swallow()
	p := newTestPublisher(t, []string{path.Endpoint()}, WithId(testID))
	first := later(p.KeepAlive)
	awaitState(t, p, StateRegistering)

	paused := later(func() error { return p.PauseContext(context.Background()) })
	require.NoError(t, <-first)
	path.Heal()
	require.NoError(t, <-paused)
	require.Equal(t, StatePaused, p.Status().State)
	requireAbsent(t, srv, testFullKey)
	srv.RequireLeases(t, 0)

	require.NoError(t, p.ResumeContext(context.Background()))
	requireValue(t, srv, testFullKey, testValue)
}

func TestPauseWhileAFailedKeepAliveCleansUpReturnsWithIt(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t, etcdtest.WithAuth("u", "p"))
	srv.AddUser(t, "stranger", "p")
	path := etcdtest.NewPath(t, srv.Endpoints()[0])
	path.Latency(150 * time.Millisecond)
	p := newTestPublisher(t, []string{path.Endpoint()}, WithId(testID), WithPubEtcdAccount("stranger", "p"))
	first := later(p.KeepAlive)
	etcdtest.RequireSoon(t, eventually, func() bool { return p.Status().Err != nil }, "the put was denied")

	// Now the lease is being revoked.
	began := time.Now()
	require.NoError(t, p.PauseContext(context.Background()))
	require.Less(t, time.Since(began), 2*time.Second)
	<-first
	require.Equal(t, StatePaused, p.Status().State)
	srv.RequireLeases(t, 0)
}

// Pause and Resume.

func TestPauseBeforeKeepAliveStartsWithdrawn(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := newTestPublisher(t, srv.Endpoints(), WithId(testID))
	require.NoError(t, p.PauseContext(context.Background()))
	require.Equal(t, StatePaused, p.Status().State)
	require.NoError(t, p.KeepAlive())
	require.ErrorIs(t, p.KeepAlive(), ErrStarted)

	require.Equal(t, StatePaused, p.Status().State)
	requireAbsent(t, srv, testFullKey)
	srv.RequireLeases(t, 0)
	require.Empty(t, srv.Requests(), "a paused start asks etcd nothing")

	require.NoError(t, p.ResumeContext(context.Background()))
	requireValue(t, srv, testFullKey, testValue)
	require.Equal(t, StatePublished, p.Status().State)
}

func TestPausedKeepAliveNeedsNoEtcd(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	srv.Stop()
	p := newTestPublisher(t, srv.Endpoints(), WithId(testID))
	p.Pause()
	requireWithin(t, 0, func() { require.NoError(t, p.KeepAlive()) })
	require.Error(t, p.ResumeContext(deadline(t, 200*time.Millisecond)))
	srv.Start()
	awaitState(t, p, StatePublished)
	requireValue(t, srv, testFullKey, testValue)
}

func TestPauseReturnsWhenTheKeyIsGone(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints())

	require.NoError(t, p.PauseContext(context.Background()))
	requireAbsent(t, srv, testFullKey)
	srv.RequireLeases(t, 0)
	etcdtest.RequireSoon(t, eventually, func() bool { return srv.Watchers() == 0 }, "a paused Publisher watches nothing")
	require.Zero(t, srv.Requests()["DeleteRange"], "withdrawing is revoking, never deleting")
}

func TestPauseAndResumeMayBeRepeated(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints())
	ctx := context.Background()
	for range 3 {
		require.NoError(t, p.PauseContext(ctx))
		before := srv.Requests()
		require.NoError(t, p.PauseContext(ctx))
		require.Equal(t, before["LeaseRevoke"], srv.Requests()["LeaseRevoke"])
		requireAbsent(t, srv, testFullKey)

		require.NoError(t, p.ResumeContext(ctx))
		kv := requireValue(t, srv, testFullKey, testValue)
		require.NoError(t, p.ResumeContext(ctx))
		require.Equal(t, kv, requireValue(t, srv, testFullKey, testValue))
		srv.RequireLeases(t, 1)
	}
}

func TestResumeWithoutPauseChangesNothing(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := newTestPublisher(t, srv.Endpoints(), WithId(testID))
	require.NoError(t, p.ResumeContext(context.Background()))
	require.Equal(t, StateIdle, p.Status().State)
	require.Empty(t, srv.Requests())
	require.NoError(t, p.KeepAlive())
	kv := requireValue(t, srv, testFullKey, testValue)

	p.Resume()
	require.NoError(t, p.ResumeContext(context.Background()))
	require.Equal(t, kv, requireValue(t, srv, testFullKey, testValue))
	require.Equal(t, 1, p.Stats().Registrations)
}

func TestResumeBeforeKeepAliveTakesAPauseBack(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := newTestPublisher(t, srv.Endpoints(), WithId(testID))
	p.Pause()
	p.Resume()
	require.Equal(t, StateIdle, p.Status().State)
	require.NoError(t, p.KeepAlive())
	requireValue(t, srv, testFullKey, testValue)
}

func TestAWithdrawErrorTellsATimeAlsoWhereNoLeaseIsKnown(t *testing.T) {
	t.Parallel()
	_, path := quickPath(t)
	path.Swallow()
	p := newTestPublisher(t, []string{path.Endpoint()}, WithId(testID), WithTTL(time.Second), WithBackgroundStart())
	require.NoError(t, p.KeepAlive())
	awaitState(t, p, StateRegistering)
	etcdtest.RequireSoon(t, eventually, func() bool { return path.Connections() > 0 }, "the grant is on its way")

	began := time.Now()
	err := p.PauseContext(deadline(t, 200*time.Millisecond))
	if err != nil {
		var withdraw *WithdrawError
		require.ErrorAs(t, err, &withdraw)
		require.WithinDuration(t, began.Add(time.Second), withdraw.Until, 2*time.Second)
	}
	path.Heal()
	require.NoError(t, p.PauseContext(context.Background()))
}

func TestPauseSupersededByResumeReturnsErrSuperseded(t *testing.T) {
	t.Parallel()
	srv, path := quickPath(t)
	p := published(t, []string{path.Endpoint()})
	path.Swallow()
	paused := later(func() error { return p.PauseContext(context.Background()) })
	awaitState(t, p, StateWithdrawing)

	resumed := later(func() error { return p.ResumeContext(context.Background()) })
	require.ErrorIs(t, <-paused, ErrSuperseded)
	path.Heal()
	require.NoError(t, <-resumed)
	requireValue(t, srv, testFullKey, testValue)
	etcdtest.RequireSoon(t, eventually, func() bool { return srv.Leases(t) == 1 }, "the lease of before is revoked")
}

func TestResumeSupersededByPauseReturnsErrSuperseded(t *testing.T) {
	t.Parallel()
	srv, path := quickPath(t)
	p := published(t, []string{path.Endpoint()})
	p.Pause()
	path.Swallow()
	resumed := later(func() error { return p.ResumeContext(context.Background()) })
	awaitState(t, p, StateRegistering)

	paused := later(func() error { return p.PauseContext(context.Background()) })
	require.ErrorIs(t, <-resumed, ErrSuperseded)
	path.Heal()
	require.NoError(t, <-paused)
	requireAbsent(t, srv, testFullKey)
	srv.RequireLeases(t, 0)
}

func TestResumeInAnOutageSaysWhyAndRegistersAfterwards(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints(), WithTimeout(600*time.Millisecond))
	p.Pause()
	srv.Stop()
	err := p.ResumeContext(context.Background())
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, testFullKey)
	require.ErrorContains(t, err, "connection refused")

	srv.Start()
	awaitState(t, p, StatePublished)
	requireValue(t, srv, testFullKey, testValue)
	srv.RequireLeases(t, 1)
}

// Stop.

func TestStopLeavesNothing(t *testing.T) {
	requireNoGoroutineLeft(t)
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints())
	etcdtest.RequireSoon(t, eventually, func() bool { return srv.Watchers() == 1 })

	require.NoError(t, p.StopContext(context.Background()))
	requireAbsent(t, srv, testFullKey)
	require.Empty(t, connections.conns)
	requireNothingLeft(t, srv)
	require.Zero(t, srv.Requests()["DeleteRange"], "withdrawing is revoking, never deleting")

	s := p.Status()
	require.Equal(t, StateStopped, s.State)
	require.Equal(t, testFullKey, s.Key)
	require.Zero(t, s.Lease)
	require.Zero(t, s.TTL)
	require.Zero(t, s.Until)
	require.NoError(t, s.Err)
}

func TestStopMayBeCalledManyTimesAtOnce(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints())
	var calls sync.WaitGroup
	for range 20 {
		calls.Go(func() {
			assert.NoError(t, p.StopContext(context.Background()))
			// Each caller waits for the same end.
			assert.Equal(t, StateStopped, p.Status().State)
		})
	}
	calls.Wait()
	requireAbsent(t, srv, testFullKey)
	require.Equal(t, 1, srv.Requests()["LeaseRevoke"])
	requireNothingLeft(t, srv)
}

func TestCallsAfterStopReturnErrStoppedAtOnce(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	calls := map[string]func(*Publisher) error{
		"KeepAlive":        (*Publisher).KeepAlive,
		"KeepAliveContext": func(p *Publisher) error { return p.KeepAliveContext(context.Background()) },
		"Pause":            func(p *Publisher) error { return p.PauseContext(context.Background()) },
		"Resume":           func(p *Publisher) error { return p.ResumeContext(context.Background()) },
		"Update":           func(p *Publisher) error { return p.Update(context.Background(), "other") },
		"Update to the same value": func(p *Publisher) error {
			return p.Update(context.Background(), testValue)
		},
	}
	before := map[string]func(*Publisher){
		"registered": func(p *Publisher) { require.NoError(t, p.KeepAlive()) },
		"paused":     func(p *Publisher) { require.NoError(t, p.KeepAlive()); p.Pause() },
		"never":      func(*Publisher) {},
	}
	for state, reach := range before {
		p := newTestPublisher(t, srv.Endpoints())
		reach(p)
		p.Stop()
		for name, call := range calls {
			requireWithin(t, 0, func() { require.ErrorIs(t, call(p), ErrStopped, "%s after Stop, %s before", name, state) })
		}
		p.Pause()
		p.Resume()
		p.Stop()
		require.Equal(t, StateStopped, p.Status().State)
		require.Equal(t, testValue, p.Status().Value)
	}
	requireNothingLeft(t, srv)
}

func TestStopOfAStoppedPublisherIsNoErrorWhateverItsContext(t *testing.T) {
	t.Parallel()
	p := newTestPublisher(t, []string{"127.0.0.1:1"})
	p.Stop()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for range 100 {
		require.NoError(t, p.StopContext(ctx))
	}
}

func TestStopWhilePausedLeavesNothing(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints())
	p.Pause()
	revokes := srv.Requests()["LeaseRevoke"]
	require.NoError(t, p.StopContext(context.Background()))
	require.Equal(t, revokes, srv.Requests()["LeaseRevoke"])
	requireNothingLeft(t, srv)
}

func TestStopInAnOutageSaysWhenTheKeyIsGoneAndGivesUpAfterOneTTL(t *testing.T) {
	requireNoGoroutineLeft(t)
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints(), WithTTL(2*time.Second), WithTimeout(500*time.Millisecond))
	srv.Stop()
	began := time.Now()

	var err error
	requireWithin(t, 500*time.Millisecond, func() { err = p.StopContext(context.Background()) })
	var withdraw *WithdrawError
	require.ErrorAs(t, err, &withdraw)
	require.Equal(t, testFullKey, withdraw.Key)
	require.WithinRange(t, withdraw.Until, began, began.Add(2*time.Second))
	require.ErrorContains(t, err, "connection refused")
	require.Equal(t, StateWithdrawing, p.Status().State)
	require.ErrorIs(t, p.KeepAlive(), ErrStopped)
	require.ErrorIs(t, p.ResumeContext(context.Background()), ErrStopped)

	awaitState(t, p, StateStopped)
	require.WithinDuration(t, began.Add(2*time.Second), time.Now(), 700*time.Millisecond)
	require.Empty(t, connections.conns)
	require.ErrorAs(t, p.StopContext(context.Background()), &withdraw, "later calls tell the same end")
	require.ErrorContains(t, p.Status().Err, "connection refused")
}

// Update.

func TestUpdateChangesTheValueUnderTheSameKeyAndLease(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints())
	before := requireValue(t, srv, testFullKey, testValue)

	require.NoError(t, p.Update(context.Background(), "10.0.0.7:9090"))
	after := requireValue(t, srv, testFullKey, "10.0.0.7:9090")
	require.Equal(t, before.Lease, after.Lease)
	require.Equal(t, before.CreateRevision, after.CreateRevision, "it was never gone")
	require.Equal(t, before.Version+1, after.Version)
	require.Equal(t, "10.0.0.7:9090", p.Status().Value)
	require.Equal(t, StatePublished, p.Status().State)
	srv.RequireLeases(t, 1)
}

func TestUpdateCostsNothingButItsPut(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints())
	etcdtest.RequireSoon(t, eventually, func() bool { return srv.Watchers() == 1 })
	before := srv.Requests()
	for i := range 20 {
		require.NoError(t, p.Update(t.Context(), strconv.Itoa(i)))
	}
	after := srv.Requests()
	require.Equal(t, 20, after["Txn"]-before["Txn"])
	for _, other := range []string{"Watch", "Watch.msg", "Range", "Put", "LeaseGrant"} {
		require.Equal(t, before[other], after[other], other)
	}
}

func TestUpdateToTheSameValueWritesNothing(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints())
	for _, value := range []string{testValue, "other", "other"} {
		require.NoError(t, p.Update(context.Background(), value))
		before, requests := requireValue(t, srv, testFullKey, value), srv.Requests()
		require.NoError(t, p.Update(context.Background(), value))
		require.Equal(t, before.ModRevision, requireValue(t, srv, testFullKey, value).ModRevision)
		require.Equal(t, requests["Put"]+requests["Txn"], srv.Requests()["Put"]+srv.Requests()["Txn"])
	}
	require.EqualValues(t, 2, requireValue(t, srv, testFullKey, "other").Version)
}

func TestUpdateOutsideARegistrationIsKeptForIt(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := newTestPublisher(t, srv.Endpoints(), WithId(testID))
	ctx := context.Background()
	require.NoError(t, p.Update(ctx, "early"))
	require.Equal(t, "early", p.Status().Value)
	require.Empty(t, srv.Requests())
	require.NoError(t, p.KeepAlive())
	require.EqualValues(t, 1, requireValue(t, srv, testFullKey, "early").Version)

	p.Pause()
	require.NoError(t, p.Update(ctx, "paused"))
	requireAbsent(t, srv, testFullKey)
	require.NoError(t, p.ResumeContext(ctx))
	require.EqualValues(t, 1, requireValue(t, srv, testFullKey, "paused").Version)
}

func TestUpdateToAnEmptyValueIsRefused(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints())
	require.ErrorIs(t, p.Update(context.Background(), ""), ErrValue)
	require.Equal(t, testValue, p.Status().Value)
	requireValue(t, srv, testFullKey, testValue)
}

func TestOfConcurrentUpdatesTheLatestStays(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints())
	var calls sync.WaitGroup
	for i := range 50 {
		calls.Go(func() { assert.NoError(t, p.Update(context.Background(), fmt.Sprint("value ", i))) })
	}
	calls.Wait()
	requireValue(t, srv, testFullKey, p.Status().Value)
	require.NoError(t, p.Update(context.Background(), "last"))
	requireValue(t, srv, testFullKey, "last")
	srv.RequireLeases(t, 1)
}

// TestAnOutageThatBeginsUnderAnUpdateKeepsItsValueBack: gRPC holds such a request back for the next connection.
func TestAnOutageThatBeginsUnderAnUpdateKeepsItsValueBack(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	var once sync.Once
	stop := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if method == pb.KV_Txn_FullMethodName {
			once.Do(func() {
				srv.Stop()
				for cc.GetState() == connectivity.Ready {
					cc.WaitForStateChange(ctx, connectivity.Ready)
				}
			})
		}
		return invoke(ctx, method, req, reply, cc, opts...)
	}
	p := published(t, srv.Endpoints(), Dialling(grpc.WithChainUnaryInterceptor(stop)))
	for _, value := range []string{"first", "second"} {
		require.ErrorIs(t, p.Update(deadline(t, 300*time.Millisecond), value), context.DeadlineExceeded)
	}
	srv.Start()
	awaitValue(t, srv, testFullKey, "second")
	awaitState(t, p, StatePublished)
	require.EqualValues(t, 2, requireValue(t, srv, testFullKey, "second").Version, "the first value was written as well")
}

func TestUpdateOfTheSameValueInAnOutageStillWaitsForIt(t *testing.T) {
	t.Parallel()
	srv, path := quickPath(t)
	p := published(t, []string{path.Endpoint()})
	path.Swallow()
	require.Error(t, p.Update(deadline(t, 100*time.Millisecond), "other"))
	// An error of this one means what it means of the first: "other" is not in etcd yet.
	require.Error(t, p.Update(deadline(t, 100*time.Millisecond), "other"))
	requireValue(t, srv, testFullKey, testValue)
	path.Heal()
	require.NoError(t, p.Update(context.Background(), "other"))
	requireValue(t, srv, testFullKey, "other")
}

func TestUpdateBackToTheOldValueInAnOutageEndsWithIt(t *testing.T) {
	t.Parallel()
	srv, path := quickPath(t)
	p := published(t, []string{path.Endpoint()})
	path.Swallow()
	_ = p.Update(deadline(t, 50*time.Millisecond), "other")
	_ = p.Update(deadline(t, 50*time.Millisecond), testValue)
	path.Heal()
	require.NoError(t, p.Update(context.Background(), testValue))
	requireValue(t, srv, testFullKey, testValue)
	requireStays(t, func() { requireValue(t, srv, testFullKey, testValue) })
}

// What others do to the key.

func TestResumeTakesTheKeyOverFromAnother(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints())
	putByAnother(t, srv, testFullKey, "another's")
	awaitState(t, p, StateConflict)
	require.NoError(t, p.ResumeContext(context.Background()))
	requireValue(t, srv, testFullKey, testValue)

	p.Pause()
	putByAnother(t, srv, testFullKey, "another's")
	require.NoError(t, p.ResumeContext(context.Background()))
	requireValue(t, srv, testFullKey, testValue)
}

func TestOfTwoWithOneIdTheSecondTakesOverAndTheFirstsStopLeavesItsKey(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	observer := etcdtest.Observe(t, srv, testKey)
	first := published(t, srv.Endpoints())
	second := published(t, srv.Endpoints())
	awaitState(t, first, StateConflict)
	kv := requireValue(t, srv, testFullKey, testValue)
	require.Equal(t, int64(second.Status().Lease), kv.Lease)

	require.NoError(t, first.StopContext(context.Background()))
	require.Equal(t, kv, requireValue(t, srv, testFullKey, testValue))
	require.Equal(t, StatePublished, second.Status().State)
	srv.RequireLeases(t, 1)
	observer.RequireNeverAbsent(t, testFullKey)
}

func TestPauseInAConflictLeavesTheOthersKey(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	first := published(t, srv.Endpoints())
	second := published(t, srv.Endpoints())
	awaitState(t, first, StateConflict)
	require.NoError(t, first.PauseContext(context.Background()))
	require.Equal(t, int64(second.Status().Lease), requireValue(t, srv, testFullKey, testValue).Lease)
	srv.RequireLeases(t, 1)
}

// Status.

func TestStatusTellsEachState(t *testing.T) {
	t.Parallel()
	srv, path := quickPath(t)
	began := time.Now()
	p := newTestPublisher(t, []string{path.Endpoint()}, WithId(testID), WithTTL(5*time.Second), WithBackgroundStart())

	s := p.Status()
	require.Equal(t, StateIdle, s.State)
	require.WithinRange(t, s.Since, began, time.Now())
	require.Equal(t, testValue, s.Value)
	require.Zero(t, s.Lease)
	require.Zero(t, s.Until)
	require.Equal(t, testFullKey, s.Key, "it is known before")
	require.NoError(t, s.Err)

	path.Refuse()
	require.NoError(t, p.KeepAlive())
	etcdtest.RequireSoon(t, eventually, func() bool { return p.Status().Err != nil })
	s = p.Status()
	require.Equal(t, StateRegistering, s.State)
	require.Equal(t, testFullKey, s.Key)
	require.Zero(t, s.Until, "no lease was ever granted")
	require.Zero(t, p.Stats().Registrations)

	path.Accept()
	awaitState(t, p, StatePublished)
	registered := time.Now()
	s = p.Status()
	require.Equal(t, testFullKey, s.Key)
	require.Equal(t, requireValue(t, srv, testFullKey, testValue).Lease, int64(s.Lease))
	require.Equal(t, 5*time.Second, s.TTL)
	require.WithinRange(t, s.Until, registered.Add(3*time.Second), registered.Add(5*time.Second))
	require.Equal(t, 1, p.Stats().Registrations)
	require.NoError(t, s.Err)

	another := putByAnother(t, srv, testFullKey, "another's")
	awaitState(t, p, StateConflict)
	s = p.Status()
	require.ErrorIs(t, s.Err, ErrConflict)
	require.NotEqual(t, another, s.Lease)

	path.Swallow()
	require.Error(t, p.PauseContext(deadline(t, 100*time.Millisecond)))
	s = p.Status()
	require.Equal(t, StateWithdrawing, s.State)
	require.WithinRange(t, s.Until, registered, time.Now().Add(5*time.Second))

	path.Heal()
	awaitState(t, p, StatePaused)
	s = p.Status()
	require.Zero(t, s.Lease)
	require.Zero(t, s.TTL)
	require.Zero(t, s.Until)
	require.NoError(t, s.Err)

	p.Stop()
	s = p.Status()
	require.Equal(t, StateStopped, s.State)
	require.WithinRange(t, s.Since, registered, time.Now())
	require.NoError(t, s.Err)
}

func TestStatusTellsUntilWhenTheLeaseLasts(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints(), WithTTL(time.Second))
	first := p.Status().Until
	etcdtest.RequireSoon(t, eventually, func() bool { return p.Status().Until.After(first) }, "each renewal moves it")

	srv.Stop()
	until := p.Status().Until
	etcdtest.RequireSoon(t, eventually, func() bool { return p.Status().State == StateRegistering }, "the outage is told")
	require.Equal(t, until, p.Status().Until, "nothing was renewed")
	require.Error(t, p.Status().Err)
}

func TestStatesReadAsInTheDiagram(t *testing.T) {
	t.Parallel()
	require.Equal(t, "idle registering published conflict withdrawing paused unhealthy stopped", fmt.Sprintf("%v %v %v %v %v %v %v %v",
		StateIdle, StateRegistering, StatePublished, StateConflict, StateWithdrawing, StatePaused, StateUnhealthy, StateStopped))
	require.Equal(t, "State(99)", State(99).String())
	require.Equal(t, "State(-1)", State(-1).String())
}

// The diagram.

// walk is what a scenario of the diagram may use.
type walk struct {
	srv  *etcdtest.Server
	path *etcdtest.Path
	p    *Publisher
	ctx  context.Context
}

func TestEveryTransitionOfTheDiagramHappens(t *testing.T) {
	t.Parallel()
	var losesAnswers atomic.Bool
	loseAnswers := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if losesAnswers.Load() && method == pb.Lease_LeaseRevoke_FullMethodName {
			return status.Error(codes.Unavailable, "lost")
		}
		err := invoke(ctx, method, req, reply, cc, opts...)
		if losesAnswers.Load() && method == pb.KV_Put_FullMethodName {
			return status.Error(codes.Unavailable, "lost")
		}
		return err
	}
	check := func(healthy *atomic.Bool) PubOption {
		return WithHealthCheck(func(context.Context) error {
			if healthy.Load() {
				return nil
			}
			return errors.New("ill")
		}, HealthPolicy{Interval: 10 * time.Millisecond, Failures: 1, Successes: 1})
	}
	var cured, changes atomic.Bool
	changes.Store(true)
	scenarios := []struct {
		name   string
		opts   []PubOption
		take   func(*testing.T, walk)
		states []State // entered, Stop included
	}{
		{
			name:   "KeepAlive and Stop",
			take:   func(t *testing.T, w walk) { require.NoError(t, w.p.KeepAlive()) },
			states: []State{StateRegistering, StatePublished, StateWithdrawing, StateStopped},
		},
		{
			name:   "Stop alone",
			take:   func(*testing.T, walk) {},
			states: []State{StateStopped},
		},
		{
			name: "Pause and Resume before KeepAlive",
			take: func(_ *testing.T, w walk) {
				w.p.Pause()
				w.p.Resume()
				w.p.Pause()
			},
			states: []State{StatePaused, StateIdle, StatePaused, StateStopped},
		},
		{
			name: "a KeepAlive that fails",
			opts: []PubOption{WithTimeout(200 * time.Millisecond)},
			take: func(t *testing.T, w walk) {
				w.path.Refuse()
				require.Error(t, w.p.KeepAlive())
			},
			states: []State{StateRegistering, StateIdle, StateStopped},
		},
		{
			name: "a KeepAlive that fails and leaves its key, Pause, Resume, Pause, KeepAlive",
			opts: []PubOption{WithTimeout(300 * time.Millisecond), Dialling(grpc.WithChainUnaryInterceptor(loseAnswers))},
			take: func(t *testing.T, w walk) {
				losesAnswers.Store(true)
				require.Error(t, w.p.KeepAlive())
				w.p.Pause()
				w.p.Resume()
				w.p.Pause()
				require.NoError(t, w.p.KeepAliveContext(deadline(t, eventually)))
				losesAnswers.Store(false)
				require.NoError(t, w.p.PauseContext(deadline(t, eventually)))
				requireAbsent(t, w.srv, testFullKey)
			},
			states: []State{StateRegistering, StateIdle, StateWithdrawing, StateIdle, StateWithdrawing, StatePaused, StateStopped},
		},
		{
			name: "Pause, KeepAlive, Resume, Pause",
			take: func(t *testing.T, w walk) {
				w.p.Pause()
				require.NoError(t, w.p.KeepAlive())
				w.p.Resume()
				w.p.Pause()
			},
			states: []State{StatePaused, StateRegistering, StatePublished, StateWithdrawing, StatePaused, StateStopped},
		},
		{
			name: "the key is deleted",
			take: func(t *testing.T, w walk) {
				require.NoError(t, w.p.KeepAlive())
				deleteByHand(t, w.srv, testFullKey)
				etcdtest.RequireSoon(t, eventually, func() bool { return w.p.Stats().Registrations == 2 })
				awaitState(t, w.p, StatePublished)
			},
			states: []State{StateRegistering, StatePublished, StateRegistering, StatePublished, StateWithdrawing, StateStopped},
		},
		{
			name: "the key is another's, and free again",
			take: func(t *testing.T, w walk) {
				require.NoError(t, w.p.KeepAlive())
				another := putByAnother(t, w.srv, testFullKey, "another's")
				awaitState(t, w.p, StateConflict)
				revokeByHand(t, w.srv, another)
				awaitState(t, w.p, StatePublished)
			},
		},
		{
			name: "the key is another's after a break, and Resume takes it",
			take: func(t *testing.T, w walk) {
				require.NoError(t, w.p.KeepAlive())
				etcdtest.RequireSoon(t, eventually, func() bool { return w.srv.Watchers() == 1 })
				w.path.Refuse()
				w.path.Reset()
				putByAnother(t, w.srv, testFullKey, "another's")
				w.path.Accept()
				awaitState(t, w.p, StateConflict)
				require.NoError(t, w.p.ResumeContext(w.ctx))
			},
			states: []State{StateRegistering, StatePublished, StateConflict, StatePublished, StateWithdrawing, StateStopped},
		},
		{
			name: "etcd is lost in a conflict",
			opts: []PubOption{WithTTL(time.Second), WithTimeout(400 * time.Millisecond)},
			take: func(t *testing.T, w walk) {
				require.NoError(t, w.p.KeepAliveContext(deadline(t, eventually)))
				putByAnother(t, w.srv, testFullKey, "another's")
				awaitState(t, w.p, StateConflict)
				w.path.Refuse()
				w.path.Reset()
				awaitState(t, w.p, StateRegistering)
				w.path.Accept()
				awaitState(t, w.p, StateConflict)
			},
		},
		{
			name: "Pause in a conflict",
			take: func(t *testing.T, w walk) {
				require.NoError(t, w.p.KeepAlive())
				putByAnother(t, w.srv, testFullKey, "another's")
				awaitState(t, w.p, StateConflict)
				w.p.Pause()
			},
		},
		{
			name: "the first health check fails, and a later one succeeds",
			opts: []PubOption{check(&cured)},
			take: func(t *testing.T, w walk) {
				require.NoError(t, w.p.KeepAlive())
				require.Equal(t, StateUnhealthy, w.p.Status().State)
				requireAbsent(t, w.srv, testFullKey)
				cured.Store(true)
				awaitState(t, w.p, StatePublished)
			},
			states: []State{StateUnhealthy, StateRegistering, StatePublished, StateWithdrawing, StateStopped},
		},
		{
			name: "a health check fails, Pause, Resume, Stop",
			opts: []PubOption{check(&changes)},
			take: func(t *testing.T, w walk) {
				require.NoError(t, w.p.KeepAlive())
				changes.Store(false)
				awaitState(t, w.p, StateUnhealthy)
				w.p.Pause()
				w.p.Resume()
			},
			states: []State{
				StateRegistering, StatePublished, StateWithdrawing, StateUnhealthy, StatePaused, StateUnhealthy, StateStopped,
			},
		},
		{
			name: "the first health check fails, and so does KeepAlive",
			opts: []PubOption{check(new(atomic.Bool)), WithClientConfig(func(c *clientv3.Config) { c.Endpoints = nil })},
			take: func(t *testing.T, w walk) {
				require.Error(t, w.p.KeepAlive())
				require.Equal(t, StateIdle, w.p.Status().State)
			},
			states: []State{StateUnhealthy, StateIdle, StateStopped},
		},
		{
			name: "Pause and Resume in an outage",
			opts: []PubOption{WithTimeout(400 * time.Millisecond)},
			take: func(t *testing.T, w walk) {
				require.NoError(t, w.p.KeepAliveContext(deadline(t, eventually)))
				w.path.Refuse()
				w.path.Reset()
				w.p.Pause()
				awaitState(t, w.p, StateWithdrawing)
				w.p.Resume()
				awaitState(t, w.p, StateRegistering)
				w.p.Pause()
				awaitState(t, w.p, StateWithdrawing)
				w.p.Resume()
				awaitState(t, w.p, StateRegistering)
				w.path.Accept()
				awaitState(t, w.p, StatePublished)
			},
			states: []State{
				StateRegistering, StatePublished, StateWithdrawing, StateRegistering, StateWithdrawing, StateRegistering,
				StatePublished, StateWithdrawing, StateStopped,
			},
		},
	}
	var mu sync.Mutex
	happened := map[State]map[State]bool{}
	t.Run("by", func(t *testing.T) {
		for _, scenario := range scenarios {
			t.Run(scenario.name, func(t *testing.T) {
				t.Parallel()
				srv, path := quickPath(t)
				p, events := newRecordedPublisher(t, []string{path.Endpoint()}, append([]PubOption{WithId(testID)}, scenario.opts...)...)
				scenario.take(t, walk{srv, path, p, context.Background()})
				p.Stop()
				awaitState(t, p, StateStopped)
				etcdtest.RequireSoon(t, eventually, func() bool {
					states := events.states()
					return len(states) > 0 && states[len(states)-1] == StateStopped
				})
				if scenario.states != nil {
					require.Equal(t, scenario.states, events.states())
				}
				mu.Lock()
				defer mu.Unlock()
				for _, e := range events.changes() {
					if happened[e.From] == nil {
						happened[e.From] = map[State]bool{}
					}
					happened[e.From][e.To] = true
				}
			})
		}
	})
	for from, tos := range transitions {
		for _, to := range tos {
			assert.Truef(t, happened[from][to], "%v -> %v is in the diagram and never happened", from, to)
		}
	}
}

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

func TestAPublisherHoldsAtMostThreeGoroutines(t *testing.T) {
	requireNoGoroutineLeft(t)
	srv := etcdtest.StartProcess(t, etcdtest.QuickTicks()) // its own goroutines are elsewhere
	srv.Client(t)
	const n = 50
	before := runtime.NumGoroutine()
	pubs := make([]*Publisher, n)
	for i := range pubs {
		pubs[i] = newTestPublisher(t, srv.Endpoints())
		require.NoError(t, pubs[i].KeepAlive())
	}
	etcdtest.RequireSoon(t, eventually, func() bool { return srv.Watchers() == n })
	cost := runtime.NumGoroutine() - before
	t.Logf("%d Publishers cost %d goroutines", n, cost)
	require.LessOrEqual(t, cost, 3*n)
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
