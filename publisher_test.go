package discov

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
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
	awaitLeases(t, srv, 1)
}

func TestAFirstRegistrationCostsOneGrantAndOnePut(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	published(t, srv.Endpoints())

	etcdtest.RequireSoon(t, eventually, func() bool { return srv.Watchers() == 1 })
	got := srv.Requests()
	require.LessOrEqual(t, got["LeaseKeepAlive.msg"], 1)
	for _, later := range []string{"Watch", "Watch.msg", "Watch.create", "LeaseKeepAlive", "LeaseKeepAlive.msg"} {
		delete(got, later) // the watch begins when KeepAlive returns, and the beat is anywhere
	}
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
	awaitLeases(t, srv, 1)
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
	requireIdle(t, p)
	s := p.Status()
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
		requireIdle(t, p)
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
		awaitLeases(t, srv, 1)
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
	awaitLeases(t, srv, 1)
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
	inTime, began := judge(t), time.Now()

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
	took := time.Since(began)
	require.GreaterOrEqual(t, took, 1300*time.Millisecond, "it goes on until the lease has ended")
	require.True(t, inTime(took, 2*time.Second+600*time.Millisecond), "it gives up then")
	require.Empty(t, connections.conns)
	require.ErrorAs(t, p.StopContext(context.Background()), &withdraw, "later calls tell the same end")
	require.ErrorContains(t, p.Status().Err, "connection refused")
}
