package discov

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

var errIll = errors.New("the server has no thread left")

// patient is a check that fails while it is ill.
type patient struct {
	ill   atomic.Bool
	calls atomic.Int32
}

func (p *patient) check(context.Context) error {
	p.calls.Add(1)
	if p.ill.Load() {
		return errIll
	}
	return nil
}

// checked waits for so many more checks, and for what comes of them.
func (p *patient) checked(n int32) {
	for until := p.calls.Load() + n; p.calls.Load() < until; {
		settle(10 * time.Millisecond)
	}
}

func TestTheKeyIsWithdrawnAfterFailuresInARowAndIsBackAfterSuccesses(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		var patient patient
		events := &EventLog{}
		p := f.published(WithId(7), WithHealthCheck(patient.check, HealthPolicy{Failures: 3, Successes: 2}), WithObserver(events.Observe))
		require.EqualValues(t, 1, patient.calls.Load(), "KeepAlive asks first")

		patient.ill.Store(true)
		patient.checked(2)
		require.True(t, f.at(fakeKey).Exists(), "two failures are not three")
		patient.ill.Store(false)
		patient.checked(1)
		patient.ill.Store(true)
		patient.checked(2)
		require.True(t, f.at(fakeKey).Exists(), "they are to be in a row")
		patient.checked(1)
		require.False(t, f.at(fakeKey).Exists())
		status := p.Status()
		require.Equal(t, StateUnhealthy, status.State)
		require.ErrorIs(t, status.Err, errIll)
		require.ErrorContains(t, status.Err, "the health check failed")
		require.Equal(t, 1, p.Stats().Losses[CauseUnhealthy])
		require.NoError(t, p.Update(t.Context(), "v1"), "it is kept for later")
		require.NoError(t, p.ResumeContext(t.Context()))

		patient.ill.Store(false)
		patient.checked(1)
		require.False(t, f.at(fakeKey).Exists(), "one success is not two")
		patient.checked(1)
		require.Equal(t, "v1", f.at(fakeKey).Value)
		require.Equal(t, StatePublished, p.Status().State)
		require.NoError(t, p.Status().Err)
		settle(time.Hour)
		calls := patient.calls.Load()
		p.Stop()
		settle(time.Hour)
		require.Equal(t, calls, patient.calls.Load(), "nothing is checked any more")
		require.Contains(t, events.states(), StateUnhealthy)
		for _, e := range events.All() {
			require.Equal(t, e.To == StateUnhealthy, e.Cause == CauseUnhealthy)
		}
	})
}

func TestWhileTheFirstCheckFailsKeepAliveReturnsNilAndRegistersLater(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		var patient patient
		patient.ill.Store(true)
		p := f.publisher(WithId(7), WithHealthCheck(patient.check, HealthPolicy{}))
		require.NoError(t, p.KeepAlive())
		settle(time.Minute)
		require.Equal(t, StateUnhealthy, p.Status().State)
		require.Empty(t, f.requests("grant"))
		require.Zero(t, p.Stats().Losses[CauseUnhealthy], "nothing was published")
		patient.ill.Store(false)
		settle(2 * 5 * time.Second)
		require.True(t, f.at(fakeKey).Exists())
		p.Stop()
	})
}

func TestTheUsersPauseOverridesTheHealthCheck(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		var patient patient
		p := f.published(WithId(7), WithHealthCheck(patient.check, HealthPolicy{}))
		patient.ill.Store(true)
		settle(time.Minute)
		require.Equal(t, StateUnhealthy, p.Status().State)
		require.NoError(t, p.PauseContext(t.Context()))
		require.Equal(t, StatePaused, p.Status().State)
		patient.ill.Store(false)
		settle(time.Minute)
		require.Equal(t, StatePaused, p.Status().State)
		require.False(t, f.at(fakeKey).Exists())
		patient.ill.Store(true)
		settle(time.Minute)
		require.NoError(t, p.ResumeContext(t.Context()))
		require.Equal(t, StateUnhealthy, p.Status().State)
		patient.ill.Store(false)
		settle(time.Minute)
		require.True(t, f.at(fakeKey).Exists())
		p.Stop()
	})
}

func TestACheckThatHangsPanicsOrEndsItsGoroutineHasFailed(t *testing.T) {
	for name, tried := range map[string]struct {
		check func(context.Context) error
		told  string
	}{
		"hangs, and heeds its context": {func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, ""},
		"panics":                       {func(context.Context) error { panic("oh dear") }, "it panicked: oh dear"},
		"ends its goroutine":           {func(context.Context) error { runtime.Goexit(); return nil }, "it ended its goroutine"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				var ill atomic.Bool
				p := f.published(WithId(7), WithHealthCheck(func(ctx context.Context) error {
					if ill.Load() {
						return tried.check(ctx)
					}
					return nil
				}, HealthPolicy{}))
				ill.Store(true)
				settle(time.Minute)
				require.Equal(t, StateUnhealthy, p.Status().State)
				require.ErrorContains(t, p.Status().Err, tried.told)
				ill.Store(false)
				settle(time.Minute)
				require.Equal(t, StatePublished, p.Status().State)
				p.Stop()
			})
		})
	}
}

func TestACheckThatHangsIsNotCalledAgainBeforeItHasReturned(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		var calls atomic.Int32
		release := make(chan struct{})
		p := f.published(WithId(7), WithHealthCheck(func(context.Context) error {
			if calls.Add(1) == 2 {
				<-release
			}
			return nil
		}, HealthPolicy{}))
		settle(time.Minute)
		require.Equal(t, StateUnhealthy, p.Status().State)
		require.ErrorContains(t, p.Status().Err, "longer than its timeout")
		require.EqualValues(t, 2, calls.Load())
		close(release)
		settle(time.Minute)
		require.Equal(t, StatePublished, p.Status().State)
		p.Stop()
	})
}

func TestAKeepAliveThatIsCancelledDuringItsHealthCheckSaysSo(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		var cured atomic.Bool
		p := f.publisher(WithId(7), WithHealthCheck(func(ctx context.Context) error {
			if !cured.Load() {
				<-ctx.Done()
			}
			return ctx.Err()
		}, HealthPolicy{Timeout: time.Minute}))
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		began := time.Now()
		require.ErrorIs(t, p.KeepAliveContext(ctx), context.Canceled)
		require.LessOrEqual(t, time.Since(began), 200*time.Millisecond)
		require.Equal(t, StateIdle, p.Status().State)
		cured.Store(true)
		require.NoError(t, p.KeepAlive())
		require.Equal(t, StatePublished, p.Status().State)
		p.Stop()
	})
}

func TestAResumeBeforeThePauseIsHeardIsNoHealthCheck(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.publisher(WithId(7))
		p.wish.setPaused()
		p.enter(StatePaused, nil)
		p.wish.clearPaused()
		p.rest() // as the goroutine does that has not heard it
		require.Equal(t, StatePaused, p.Status().State)
		p.Stop()
	})
}

func TestASecondKeepAliveChecksNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		var patient patient
		p := f.published(WithId(7), WithHealthCheck(patient.check, HealthPolicy{Failures: 1}))
		patient.ill.Store(true)
		require.ErrorIs(t, p.KeepAlive(), ErrStarted)
		synctest.Wait()
		require.EqualValues(t, 1, patient.calls.Load())
		require.Equal(t, StatePublished, p.Status().State)
		p.Stop()
	})
}

func TestAWrongHealthPolicyIsNamed(t *testing.T) {
	check := func(context.Context) error { return nil }
	for wrong, policy := range map[string]HealthPolicy{
		"Interval is -1s": {Interval: -time.Second},
		"Timeout is -1ns": {Timeout: -1},
		"Failures is -1":  {Failures: -1},
		"Successes is -2": {Successes: -2},
	} {
		err := NewPublisher([]string{"127.0.0.1:1"}, "k", "v", WithHealthCheck(check, policy)).KeepAlive()
		require.ErrorIs(t, err, ErrOptions)
		require.ErrorContains(t, err, wrong)
	}
	require.ErrorIs(t, NewPublisher([]string{"127.0.0.1:1"}, "k", "v", WithHealthCheck(nil, HealthPolicy{})).KeepAlive(), ErrOptions)
}

// leaveKey calls a KeepAlive that fails and leaves its key.
func (f *fakeEtcd) leaveKey(p *Publisher) {
	f.t.Helper()
	f.meets(leavesKey.of)
	var left *WithdrawError
	require.ErrorAs(f.t, p.KeepAliveContext(deadline(f.t, time.Second)), &left)
	require.True(f.t, f.at(fakeKey).Exists())
}

func TestAStopDuringTheFirstCheckIsTheEnd(t *testing.T) {
	for name, left := range map[string]bool{"of the first start": false, "of a start after one that has left its key": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				var slow atomic.Bool
				events := &EventLog{}
				p := f.publisher(WithId(7), WithObserver(events.Observe), WithHealthCheck(func(ctx context.Context) error {
					if slow.Load() {
						<-ctx.Done()
					}
					return nil
				}, HealthPolicy{Timeout: time.Minute}))
				if left {
					f.leaveKey(p)
				}
				slow.Store(true)
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				kept := later(func() error { return p.KeepAliveContext(ctx) })
				settle(100 * time.Millisecond)
				began := time.Now()
				stopped := later(func() error { return p.StopContext(t.Context()) })
				settle(10 * time.Millisecond)
				f.heal()
				require.NoError(t, <-stopped)
				require.ErrorIs(t, <-kept, ErrStopped)
				require.Less(t, time.Since(began), time.Second)
				settle(time.Minute)
				require.Equal(t, StateStopped, p.Status().State)
				require.Empty(t, f.leaseIDs())
				events.requireDrawn(t)
			})
		})
	}
}

func TestAKeyThatIsLeftIsNotSaidToBeWithdrawn(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		var patient patient
		p := f.publisher(WithId(7), WithHealthCheck(patient.check, HealthPolicy{}))
		f.leaveKey(p)
		patient.ill.Store(true)
		kept := later(p.KeepAlive)
		settle(time.Second)
		require.Equal(t, StateWithdrawing, p.Status().State)
		require.Error(t, p.PauseContext(deadline(t, time.Second)))
		require.Equal(t, StateWithdrawing, p.Status().State)
		f.heal()
		require.NoError(t, <-kept)
		settle(time.Second)
		require.False(t, f.at(fakeKey).Exists())
		require.Equal(t, StatePaused, p.Status().State)
		p.Resume()
		require.Equal(t, StateUnhealthy, p.Status().State)
		p.Stop()
	})
}

func TestAResumeBeforeAStartIsNeverToldAsAPause(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		var slow atomic.Bool
		p := f.publisher(WithId(7), WithHealthCheck(func(context.Context) error {
			if slow.Load() {
				time.Sleep(800 * time.Millisecond)
			}
			return nil
		}, HealthPolicy{}))
		f.leaveKey(p)
		slow.Store(true)
		go p.Pause()
		settle(10 * time.Millisecond)
		kept := later(p.KeepAlive)
		settle(10 * time.Millisecond)
		resumed := later(func() error { return p.ResumeContext(t.Context()) })
		settle(10 * time.Millisecond)
		f.heal()
		settle(200 * time.Millisecond)
		require.NotEqual(t, StatePaused, p.Status().State)
		require.NoError(t, <-kept)
		require.NoError(t, <-resumed)
		require.Equal(t, StatePublished, p.Status().State)
		p.Stop()
	})
}

func TestNothingIsPublishedBeforeACheckHasSucceeded(t *testing.T) {
	for name, tried := range map[string]struct {
		opts   []PubOption
		policy HealthPolicy
	}{
		"the check outlasts the timeout":     {[]PubOption{WithTimeout(time.Second)}, HealthPolicy{}},
		"so it does in a background start":   {[]PubOption{WithTimeout(time.Second), WithBackgroundStart()}, HealthPolicy{}},
		"its own timeout is longer":          {nil, HealthPolicy{Timeout: time.Minute}},
		"longer, in a start in a background": {[]PubOption{WithBackgroundStart()}, HealthPolicy{Timeout: time.Minute}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				hangs := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
				p := f.publisher(append(tried.opts, WithId(7), WithHealthCheck(hangs, tried.policy))...)
				require.NoError(t, p.KeepAlive())
				settle(time.Minute)
				require.Equal(t, StateUnhealthy, p.Status().State)
				require.ErrorContains(t, p.Status().Err, "the health check failed")
				require.Empty(t, f.requests("put"))
				p.Stop()
			})
		})
	}
}

func TestOneCheckIsUnderWayAtMostWhateverKeepAliveItIsFor(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		var now, most atomic.Int32
		release := make(chan struct{})
		p := f.publisher(WithId(7), WithHealthCheck(func(context.Context) error {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			<-release
			return nil
		}, HealthPolicy{}))
		for range 5 {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(100*time.Millisecond, cancel)
			require.ErrorIs(t, p.KeepAliveContext(ctx), context.Canceled)
		}
		require.EqualValues(t, 1, most.Load())
		close(release)
		p.Stop()
	})
}

func TestAFailureOfTheCheckIsToldOnceAndTheLatestStaysInStatus(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		var n atomic.Int32
		events := &EventLog{}
		p := f.publisher(WithId(7), WithObserver(events.Observe), WithHealthCheck(func(context.Context) error {
			return fmt.Errorf("failure %d", n.Add(1))
		}, HealthPolicy{}))
		require.NoError(t, p.KeepAlive())
		settle(time.Minute)
		require.ErrorContains(t, p.Status().Err, fmt.Sprint("failure ", n.Load()))
		require.Equal(t, []State{StateUnhealthy}, events.states())
		require.Len(t, events.All(), 1)
		p.Stop()
	})
}

func TestAnEndedKeepAlivesCheckDecidesNothingMore(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		var patient patient
		p := f.publisher(WithId(7), WithHealthCheck(patient.check, HealthPolicy{}))
		life, end := context.WithCancel(t.Context())
		end()
		late := &health{ledger: p.ledger, life: life}
		require.NoError(t, p.KeepAlive())
		late.fell(errIll)
		synctest.Wait()
		require.Equal(t, StatePublished, p.Status().State)
		p.Stop()
	})
}
