package discov

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/bubble"
	"github.com/discov-go/discov/internal/etcd"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The tests in this file run in virtual time, in which an outage of half an hour takes no time at all, over a fake etcd.

const fakeKey = "user.rpc/7"

func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestALeaseIsRenewedAtEachThirdOfItsTTL(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7), WithTTL(30*time.Second))
		began := time.Now()
		settle(5 * time.Minute)
		renewals := f.requests("renew")
		require.GreaterOrEqual(t, len(renewals), 30)
		for _, at := range renewals {
			require.LessOrEqual(t, at.Sub(began), 10*time.Second)
			require.GreaterOrEqual(t, at.Sub(began), 7*time.Second)
			began = at
		}
		require.Equal(t, 1, p.Stats().Registrations)
		require.NoError(t, p.StopContext(t.Context()))
	})
}

func TestALeaseCountsFromWhenItsRenewalIsSentNotFromTheWaitForAConnection(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		f.down()
		settle(7 * time.Second) // the second try waits, and is a renewal
		f.back()
		back := time.Now()
		settle(time.Second)
		require.False(t, p.Status().Until.Before(back.Add(defaultTTL)), "until %v after etcd is back", p.Status().Until.Sub(back))
		p.Stop()
	})
}

func TestAHealthyRegistrationIsReadAboutTwiceAMinuteAndNeverWritten(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		settle(time.Hour)
		require.Len(t, f.requests("put"), 1)
		require.Len(t, f.requests("grant"), 1)
		require.InDelta(t, 137, len(f.requests("get")), 20)
		p.Stop()
	})
}

func TestAReadThatTakesLongerThanTheTTLCostsNoLease(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7), WithTTL(2*time.Second))
		f.meets(troubles{"get": {delay: 2400 * time.Millisecond}}.of)
		settle(10 * time.Minute)
		require.Greater(t, len(f.requests("get")), 15)
		require.Len(t, f.requests("grant"), 1)
		f.heal()
		p.Stop()
	})
}

func TestAfterHalfAnHourOfOutageTheKeyIsBackAtOnceAndTheLogIsShort(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		log := &LogLines{}
		p := f.published(WithId(7), log.Option())
		f.down()
		settle(30 * time.Minute)
		require.Equal(t, StateRegistering, p.Status().State)
		require.ErrorIs(t, p.Status().Err, context.DeadlineExceeded)
		f.back()
		settle(time.Second)
		require.True(t, f.at(fakeKey).Exists())
		require.Equal(t, StatePublished, p.Status().State)
		require.NoError(t, p.Status().Err)
		require.Len(t, f.leaseIDs(), 1)

		f.down()
		log.Take()
		settle(time.Hour)
		f.back()
		settle(time.Second)
		require.True(t, f.at(fakeKey).Exists())
		lines := log.Take()
		require.LessOrEqual(t, len(lines), 20, "in an hour of outage: %q", lines)
		require.GreaterOrEqual(t, len(lines), 3)
		require.Contains(t, lines[len(lines)-1], "registered again")
		p.Stop()
	})
}

func TestInAnOutageTriesArePacedAndJittered(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		f.mu.Lock()
		f.calls = nil
		f.endWatchesLocked()
		f.mu.Unlock()
		f.meets(func(string) trouble { return trouble{before: rpctypes.ErrNoSpace} })
		f.remove(fakeKey)
		settle(time.Minute)
		f.mu.Lock()
		calls := slices.Clone(f.calls)
		f.mu.Unlock()
		require.Less(t, len(calls), 140, "calls a minute, with every call refused at once")
		require.Greater(t, len(calls), 80)
		gaps := map[time.Duration]bool{}
		for i := 1; i < len(calls); i++ {
			gap := calls[i].at.Sub(calls[i-1].at)
			require.LessOrEqual(t, gap, backoff.Most)
			gaps[gap] = true
		}
		require.Greater(t, len(gaps), len(calls)/2, "no two waits alike")
		f.heal()
		settle(time.Second)
		require.True(t, f.at(fakeKey).Exists())
		p.Stop()
	})
}

func TestNobodyPausesWhenAnOutageEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		published, paused := f.published(WithId(7)), f.published(WithId(8))
		for range 30 {
			f.down()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			require.Error(t, paused.PauseContext(ctx))
			cancel()
			settle(rand.N(20 * time.Second))
			f.wipe()
			f.back()
			settle(50 * time.Millisecond)
			require.True(t, f.at(fakeKey).Exists())
			require.Equal(t, StatePaused, paused.Status().State)
			require.NoError(t, paused.ResumeContext(t.Context()))
			settle(rand.N(time.Minute))
		}
		published.Stop()
		paused.Stop()
	})
}

func TestAGrantWhoseAnswerWasLostIsRevokedOnceAnotherHoldsTheKey(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		lost := 0
		f.meets(func(op string) trouble {
			if op == "grant" && lost < 3 {
				lost++
				return trouble{after: errReset}
			}
			return trouble{}
		})
		p := f.published()
		require.Equal(t, 3, lost)
		settle(0)
		require.Len(t, f.leaseIDs(), 1)
		require.True(t, f.at(fmt.Sprintf("user.rpc/%d", p.Status().Lease)).Exists())
		p.Stop()
		require.Empty(t, f.leaseIDs())
	})
}

func TestGrantsWithoutAnAnswerDoNotPileUp(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		f.meets(troubles{"grant": {after: errReset}}.of)
		p := f.publisher(WithBackgroundStart())
		require.NoError(t, p.KeepAlive())
		for range 100 {
			settle(time.Second)
			require.LessOrEqual(t, len(f.leaseIDs()), strayLeases)
		}
		f.heal()
		settle(time.Second)
		require.Equal(t, []clientv3.LeaseID{p.Status().Lease}, f.leaseIDs())
		p.Stop()
	})
}

// aged returns a Publisher that has lost many leases.
func (f *fakeEtcd) aged() *Publisher {
	p := f.published(WithId(7))
	for range 20 {
		settle(2 * calm)
		f.expire(p.Status().Lease)
		settle(calm)
	}
	return p
}

func TestPastLeasesThatARestoreMayBringBackHoldNothingUp(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.aged()
		f.meets(func(string) trouble { return trouble{delay: time.Second} })
		f.wipe()
		settle(5 * time.Second)
		was := p.Status().Lease
		settle(time.Minute)
		require.Equal(t, was, p.Status().Lease)
		require.Len(t, f.leaseIDs(), 1)

		f.wipe()
		settle(5 * time.Second)
		require.True(t, f.at(fakeKey).Exists())
		require.NoError(t, p.StopContext(t.Context()))
		require.False(t, f.at(fakeKey).Exists())
	})
}

func TestALeaseThatCannotBeRevokedHoldsNoOtherUp(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.aged()
		refused := 0
		f.meets(func(op string) trouble {
			if refused++; op == "revoke" && refused%2 == 0 {
				return trouble{before: errReset}
			}
			return trouble{}
		})
		f.wipe()
		settle(time.Second)
		require.NoError(t, p.StopContext(t.Context()))
		require.Empty(t, f.leaseIDs())
	})
}

func TestAKeepAliveThatFailsLeavesNoLeaseAndMayBeCalledAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		f.meets(troubles{"put": {after: errReset}}.of)
		p := f.publisher()
		began := time.Now()
		err := p.KeepAlive()
		require.ErrorContains(t, err, "connection reset")
		require.ErrorContains(t, err, "put user.rpc/")
		require.LessOrEqual(t, time.Since(began), defaultTimeout)
		require.Empty(t, f.leaseIDs())
		require.Equal(t, StateIdle, p.Status().State)
		require.Equal(t, 1, f.releases)
		f.heal()
		require.NoError(t, p.KeepAlive())
		p.Stop()
		require.Equal(t, 2, f.releases)
	})
}

func TestAKeyThatAFailedKeepAliveMayHaveLeftIsToldUntilItIsGone(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.leftKey()
		var left *WithdrawError
		require.ErrorAs(t, p.KeepAlive(), &left)
		require.Equal(t, fakeKey, left.Key)
		require.ErrorAs(t, p.PauseContext(t.Context()), &left, "it is not gone")
		require.True(t, f.at(fakeKey).Exists())
		time.Sleep(time.Until(left.Until))
		synctest.Wait()
		require.False(t, f.at(fakeKey).Exists())
		require.NoError(t, p.StopContext(t.Context()))
	})
}

// leavesKey makes a KeepAlive fail that has left its key.
var leavesKey = troubles{"put": {after: errReset}, "revoke": {before: errRefused}}

// leftKey is a Publisher whose KeepAlive will fail and leave its key, for a minute.
func (f *fakeEtcd) leftKey(opts ...PubOption) *Publisher {
	f.meets(leavesKey.of)
	return f.publisher(append([]PubOption{WithId(7), WithTTL(time.Minute)}, opts...)...)
}

func TestAKeyThatAFailedKeepAliveHasLeftIsNeverSaidToBeGone(t *testing.T) {
	calls := map[string]func(t *testing.T, f *fakeEtcd, p *Publisher) error{
		"Pause, while KeepAlive cleans up": func(t *testing.T, f *fakeEtcd, p *Publisher) error {
			failed := later(p.KeepAlive)
			for len(f.requests("revoke")) == 0 {
				time.Sleep(time.Millisecond)
			}
			err := p.PauseContext(t.Context())
			require.Error(t, <-failed)
			return err
		},
		"Pause, after a KeepAlive that waits for Resume": func(t *testing.T, _ *fakeEtcd, p *Publisher) error {
			require.Error(t, p.KeepAlive())
			require.Error(t, p.PauseContext(t.Context()))
			require.NoError(t, p.KeepAlive())
			return p.PauseContext(t.Context())
		},
		"Pause, while the next KeepAlive is under way": func(t *testing.T, _ *fakeEtcd, p *Publisher) error {
			require.Error(t, p.KeepAlive())
			go func() { _ = p.KeepAlive() }()
			settle(time.Millisecond)
			return p.PauseContext(t.Context())
		},
		"Stop, after two KeepAlives": func(t *testing.T, _ *fakeEtcd, p *Publisher) error {
			require.Error(t, p.KeepAlive())
			require.Error(t, p.KeepAlive())
			return p.StopContext(t.Context())
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				p := f.leftKey()
				err := call(t, f, p)
				var left *WithdrawError
				require.ErrorAs(t, err, &left)
				require.Equal(t, fakeKey, left.Key)
				require.True(t, f.at(fakeKey).Exists())
				f.heal()
				settle(time.Until(left.Until))
				require.False(t, f.at(fakeKey).Exists())
				p.Stop()
			})
		})
	}
}

func TestAKeepAliveThatFailsLeavesATenthOfItsBoundToTheCleanUp(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		for range 20 { // the back-off is jittered
			f := newFakeEtcd(t)
			f.meets(troubles{"put": {before: rpctypes.ErrNoLeader}, "revoke": {delay: 400 * time.Millisecond}}.of)
			p := f.publisher(WithId(7))
			began := time.Now()
			var left *WithdrawError
			require.NotErrorAs(t, p.KeepAlive(), &left)
			require.LessOrEqual(t, time.Since(began), defaultTimeout)
			p.Stop()
		}
	})
}

// begun is a Publisher whose first registration has succeeded, or has nothing to do, and whose goroutine has not seen what is
// asked for since.
func (f *fakeEtcd) begun(p *Publisher) (k *keeper, goOn func()) {
	bound, cancel := p.bound(context.Background())
	defer cancel()
	p.running, p.wish.takeover = true, true
	k = &keeper{ledger: p.ledger, opts: &p.opts, connect: p.connect}
	r := k.newRegistration(f, leases{})
	require.NoError(f.t, k.begin(&start{caller: bound, bound: bound}, r))
	return k, func() { k.finish(k.keep(r)) }
}

func TestAPauseAndAResumeThatTheGoroutineHasNotSeenEndInTheKeyBeingThere(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.publisher(WithId(7))
		_, goOn := f.begun(p)
		over, cancel := context.WithCancel(t.Context())
		cancel()
		require.Error(t, p.PauseContext(over))
		resumed := later(func() error { return p.ResumeContext(t.Context()) })
		synctest.Wait()
		go goOn()
		require.NoError(t, <-resumed)
		p.Stop()
	})
}

func TestAResumeThatIsTakenBackBeforeAnythingIsBegunLeavesThePublisherPaused(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.publisher(WithId(7))
		p.Pause()
		k, goOn := f.begun(p)
		over, cancel := context.WithCancel(t.Context())
		cancel()
		require.Error(t, p.ResumeContext(over))
		want, _ := k.heed() // and nothing more
		require.Equal(t, wantPublished, want)
		paused := make(chan error, 1)
		go func() { paused <- p.PauseContext(t.Context()) }()
		synctest.Wait()
		go goOn()
		require.NoError(t, <-paused)
		require.Equal(t, StatePaused, p.Status().State)
		p.Stop()
	})
}

func TestAResumeThatCutsTheFirstWithdrawalShortTakesALease(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.publisher(WithId(7))
		_, goOn := f.begun(p)
		f.meets(troubles{"revoke": {before: errReset}}.of)
		over, cancel := context.WithCancel(t.Context())
		cancel()
		require.Error(t, p.PauseContext(over))
		go goOn()
		settle(10 * time.Millisecond)
		require.NoError(t, p.ResumeContext(t.Context()))
		require.Empty(t, f.requests("renew"), "there was no lease to renew")
		require.Equal(t, p.Status().Lease, f.at(fakeKey).Lease)
		f.heal()
		p.Stop()
	})
}

func TestPauseWhileTheNextKeepAliveIsUnderWayTakesDrawnWays(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) { // whose Publishers are held to the diagram
		p := f.leftKey()
		require.Error(t, p.KeepAlive())
		go func() { _ = p.KeepAlive() }()
		settle(time.Millisecond)
		f.heal()
		require.NoError(t, p.PauseContext(t.Context()))
		require.False(t, f.at(fakeKey).Exists())
		p.Stop()
	})
}

func TestPauseWhileABackgroundStartConnectsIsDone(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.publisher(WithId(7), WithBackgroundStart())
		connect := p.connect
		var connects atomic.Bool
		p.connect = func(ctx, _ context.Context) (connected, error) {
			if connects.Load() {
				return connect(ctx, ctx)
			}
			time.Sleep(200 * time.Millisecond)
			return connected{}, errors.New("no client")
		}
		require.NoError(t, p.KeepAlive())
		settle(10 * time.Second)
		require.Equal(t, StateRegistering, p.Status().State)
		require.ErrorContains(t, p.Status().Err, "no client")
		require.NoError(t, p.PauseContext(t.Context()))
		require.Equal(t, StatePaused, p.Status().State)
		settle(10 * time.Second)
		require.Equal(t, StatePaused, p.Status().State)
		connects.Store(true)
		settle(10 * time.Second)
		require.NoError(t, p.ResumeContext(t.Context()))
		require.True(t, f.at(fakeKey).Exists())
		p.Stop()
	})
}

func TestAStopThatDoesNotWaitAllowsForTheRenewalThatIsUnderWay(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		for range 20 { // a renewal that is given up may be applied or not
			f := newFakeEtcd(t)
			p := f.published(WithId(7))
			f.meets(troubles{"renew": {delay: 2 * time.Second}, "revoke": {before: errRefused}}.of)
			time.Sleep(defaultTTL/3 + time.Second) // under way
			over, cancel := context.WithCancel(t.Context())
			cancel()
			var left *WithdrawError
			require.ErrorAs(t, p.StopContext(over), &left)
			time.Sleep(time.Until(left.Until))
			synctest.Wait()
			require.False(t, f.at(fakeKey).Exists())
			settle(defaultTTL)
		}
	})
}

// lateEtcd puts the key in the moment in which the caller gives up, and tells of it late.
type lateEtcd struct {
	*fakeEtcd
	giveUp context.CancelFunc
}

func (l lateEtcd) Put(ctx context.Context, what etcd.Write) (int64, error) {
	rev, err := l.fakeEtcd.Put(ctx, what)
	l.giveUp()
	time.Sleep(time.Second)
	return rev, err
}

func TestAKeepAliveThatIsGivenUpAsItSucceedsIsUndoneAsDrawn(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.publisher(WithId(7))
		ctx, giveUp := context.WithCancel(t.Context())
		p.connect = func(_, _ context.Context) (connected, error) {
			late := lateEtcd{f, giveUp}
			return connected{first: late, usual: late, release: func() {}}, nil
		}
		require.ErrorIs(t, p.KeepAliveContext(ctx), context.Canceled)
		settle(2 * time.Second)
		require.False(t, f.at(fakeKey).Exists())
		require.Empty(t, f.leaseIDs())
		require.Equal(t, StateIdle, p.Status().State)
		p.Stop()
	})
}

func TestUpdatesOnAHealthyEtcdAreNotHeldBack(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		for i := range 50 {
			began := time.Now()
			require.NoError(t, p.Update(t.Context(), fmt.Sprint(i)))
			require.Less(t, time.Since(began), 10*time.Millisecond)
			time.Sleep(700 * time.Millisecond)
		}
		p.Stop()
	})
}

// TestAnOutageThatBeginsUnderAWriteKeepsItsValueBack: there was a connection when the value was taken.
func TestAnOutageThatBeginsUnderAWriteKeepsItsValueBack(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		before := f.at(fakeKey).Rev
		var once sync.Once
		f.meets(func(op string) trouble {
			if op == "put" {
				once.Do(f.downLocked)
			}
			return trouble{}
		})
		for _, value := range []string{"first", "second"} {
			ctx, cancel := context.WithTimeout(t.Context(), fakeCall/4)
			require.ErrorIs(t, p.Update(ctx, value), context.DeadlineExceeded)
			cancel()
		}
		f.back()
		require.NoError(t, p.Update(t.Context(), "second"))
		require.Equal(t, "second", f.at(fakeKey).Value)
		require.Equal(t, before+1, f.at(fakeKey).Rev, "the first value was written as well")
		p.Stop()
	})
}

func TestAValueThatIsTooLargeLeavesTheOneBeforeAndNoTakeover(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		f.tooLarge = "huge"
		p := f.published(WithId(7))
		require.ErrorIs(t, p.Update(t.Context(), "huge"), rpctypes.ErrRequestTooLarge)
		require.Equal(t, "v0", f.at(fakeKey).Value)
		p.Pause()
		require.NoError(t, p.ResumeContext(t.Context()))
		require.Equal(t, "v0", f.at(fakeKey).Value)
		f.lend(99)
		f.set(fakeKey, "another", 99)
		settle(time.Second)
		require.Equal(t, StateConflict, p.Status().State)
		require.Equal(t, "another", f.at(fakeKey).Value)
		p.Stop()
	})
}

func TestAValueThatIsTooLargeIsNoTroubleOfTheRegistration(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		f.tooLarge = "huge"
		log := &LogLines{}
		p := f.published(WithId(7), log.Option())
		log.Take()
		require.Error(t, p.Update(t.Context(), "huge"))
		require.NoError(t, p.Update(t.Context(), "v1"))
		settle(time.Hour)
		f.remove(fakeKey)
		settle(time.Second)
		lines := strings.Join(log.Take(), "\n")
		require.Equal(t, 1, strings.Count(lines, "discov: the latest value is refused"), lines)
		require.NotContains(t, lines, "not done yet")
		require.Contains(t, lines, "registered again")
		require.NotContains(t, lines, "after=1h", "the trouble began an hour later")
		p.Stop()
	})
}

func TestAFirstValueThatIsTooLargeIsNotSentAgainAndAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		f.tooLarge = "v0"
		p := f.publisher(WithId(7), WithBackgroundStart())
		require.NoError(t, p.KeepAlive())
		settle(10 * time.Minute)
		require.LessOrEqual(t, len(f.requests("put")), 12)
		require.ErrorIs(t, p.Status().Err, rpctypes.ErrRequestTooLarge)
		require.NoError(t, p.Update(t.Context(), "v1"), "another one is sent at once")
		require.Equal(t, "v1", f.at(fakeKey).Value)
		p.Stop()
	})
}

func TestAPausedPublisherWhoseConnectionBreaksAgainAndAgainAsksWithPauses(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		require.NoError(t, p.PauseContext(t.Context()))
		before := len(f.requests("leases"))
		for range 600 {
			f.mu.Lock()
			f.endWatchesLocked() // connections break
			f.mu.Unlock()
			settle(100 * time.Millisecond)
		}
		require.Less(t, len(f.requests("leases"))-before, 160, "in a minute")
		p.Stop()
	})
}

func TestAValueWhoseAnswerWasLostIsTheOneBeforeOneThatIsTooLarge(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		f.tooLarge = "huge"
		p := f.published(WithId(7))
		lost := false
		f.meets(func(op string) trouble {
			if op == "put" && !lost {
				lost = true
				return trouble{after: errReset}
			}
			return trouble{}
		})
		require.NoError(t, p.Update(t.Context(), "v1"))
		require.True(t, lost)
		require.ErrorIs(t, p.Update(t.Context(), "huge"), rpctypes.ErrRequestTooLarge)
		require.Equal(t, "v1", f.at(fakeKey).Value)
		p.Stop()
	})
}

func TestAStopInAnOutageTriesForOneTTLAndSaysByWhenTheKeyIsGone(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		f.down()
		began := time.Now()
		err := p.StopContext(t.Context())
		require.Equal(t, defaultTimeout, time.Since(began))
		var withdraw *WithdrawError
		require.ErrorAs(t, err, &withdraw)
		require.Equal(t, fakeKey, withdraw.Key)
		require.LessOrEqual(t, withdraw.Until, began.Add(defaultTTL))
		require.Equal(t, StateWithdrawing, p.Status().State)
		settle(defaultTTL)
		require.Equal(t, StateStopped, p.Status().State)
		require.ErrorAs(t, p.StopContext(t.Context()), &withdraw, "a later call has the same outcome")
		require.Equal(t, 1, f.releases)
		require.False(t, f.at(fakeKey).Exists(), "nobody renews it")
	})
}

func TestAPauseInAnOutageIsTriedUntilEtcdAnswersHoweverLate(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7), WithTTL(time.Hour))
		f.down()
		var withdraw *WithdrawError
		require.ErrorAs(t, p.PauseContext(t.Context()), &withdraw)
		settle(20 * time.Minute)
		require.True(t, f.at(fakeKey).Exists())
		f.back()
		settle(time.Second)
		require.False(t, f.at(fakeKey).Exists())
		require.Equal(t, StatePaused, p.Status().State)
		p.Stop()
	})
}

func TestAResumeBeforeTheRevokeIsConfirmedTakesANewLeaseFirst(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		was := p.Status().Lease
		f.meets(troubles{"revoke": {before: errReset}}.of)
		require.Error(t, p.PauseContext(t.Context()))
		require.True(t, f.at(fakeKey).Exists())
		require.NoError(t, p.ResumeContext(t.Context()))
		require.NotEqual(t, was, p.Status().Lease)
		require.Equal(t, p.Status().Lease, f.at(fakeKey).Lease)
		f.heal()
		settle(5 * time.Second)
		require.Equal(t, []clientv3.LeaseID{p.Status().Lease}, f.leaseIDs(), "the old one was revoked with the next renewal")
		p.Stop()
	})
}

func TestAnotherInstanceKeepsTheKeyThatItTookAndAFreeOneIsTakenBackAtAPace(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		f.lend(99)
		writes := len(f.requests("put"))
		for range 40 {
			f.set(fakeKey, "another", 99)
			settle(time.Second)
			require.Equal(t, StateConflict, p.Status().State)
			require.ErrorIs(t, p.Status().Err, ErrConflict)
			f.remove(fakeKey)
			settle(500 * time.Millisecond)
		}
		require.LessOrEqual(t, len(f.requests("put"))-writes, 10, "in a minute: after 0, 1, 3, 7, 15 s, and every 10 s then")
		settle(fillMost)
		require.Equal(t, StatePublished, p.Status().State)
		f.set(fakeKey, "another", 99)
		synctest.Wait()
		require.ErrorIs(t, p.Update(t.Context(), "v1"), ErrConflict)
		require.NoError(t, p.ResumeContext(t.Context()), "a Resume is somebody's decision")
		require.Equal(t, "v1", f.at(fakeKey).Value)
		f.set(fakeKey, "another", 99)
		synctest.Wait()
		p.Stop()
		require.Equal(t, "another", f.at(fakeKey).Value)
	})
}

func TestAKeyThatIsDeletedInALoopIsMendedWithPauses(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		for range 60_000 {
			f.remove(fakeKey)
			settle(time.Millisecond)
		}
		require.Less(t, len(f.requests("put")), 150, "in a minute")
		settle(time.Second)
		require.True(t, f.at(fakeKey).Exists())
		p.Stop()
	})
}

func TestARevisionThatWentBackIsADoubt(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		f.rev = 1000
		p := f.published(WithId(7))
		f.mu.Lock() // restored to a time without the key, and the watch sleeps on at a revision that is far ahead
		f.rev = 10
		delete(f.keys, fakeKey)
		clear(f.watches)
		f.mu.Unlock()
		settle(defaultTTL / 3)
		require.True(t, f.at(fakeKey).Exists())
		p.Stop()
	})
}

func TestTheWaysInTheDocsAreThoseInTheCode(t *testing.T) {
	for _, file := range []string{"publisher.go"} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		drawn := map[string][]string{}
		for _, way := range regexp.MustCompile(`(?m)^(?://\t)?([a-z]+) +→ ([a-z, ]+)$`).FindAllStringSubmatch(string(text), -1) {
			drawn[way[1]] = strings.Split(way[2], ", ")
		}
		coded := map[string][]string{}
		for from, tos := range transitions {
			for _, to := range tos {
				coded[from.String()] = append(coded[from.String()], to.String())
			}
		}
		require.Equal(t, coded, drawn, file)
	}
}

func TestAKeyThatAnotherTakesAndLeavesInAMomentIsTakenBackAtAPace(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		synctest.Wait() // it is watched
		f.lend(99)
		for range 10 {
			f.mu.Lock() // so that both are seen at once
			f.setLocked(fakeKey, "another", 99)
			f.removeLocked(fakeKey)
			f.mu.Unlock()
			settle(time.Second)
		}
		require.Len(t, f.requests("put"), 1+4, "after 0, 1, 3, 7 s")
		require.Equal(t, StateConflict, p.Status().State)
		require.ErrorContains(t, p.Status().Err, "it is free, and taken again at")
		settle(fillMost)
		require.True(t, f.at(fakeKey).Exists())
		require.Equal(t, StatePublished, p.Status().State)
		f.expire(99)
		p.Stop()
	})
}

func TestAWatchFromBeforeAWipeIsNotHeardAfterIt(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		f.meets(func(string) trouble { return trouble{delay: 4 * time.Second} }) // etcd hangs
		require.Error(t, p.Update(deadline(t, time.Second), "v1"))
		f.lend(99)
		for range 5 {
			f.set(fakeKey, "another's", 99) // of which the watch hears
		}
		settle(time.Second)
		f.down()
		settle(time.Second)
		f.wipe()
		f.heal()
		f.back()
		settle(10 * time.Minute)
		require.Equal(t, StatePublished, p.Status().State)
		require.Equal(t, "v1", f.at(fakeKey).Value)
		p.Stop()
	})
}

// TestAnySequenceEndsInTheStateAskedForLast is a property test: whatever the user calls and etcd does, once the faults
// are over etcd is as the user wanted it last, no state was passed on a way that the diagram lacks, no call outlasted its
// bound, and nothing is left.
func TestAnySequenceEndsInTheStateAskedForLast(t *testing.T) {
	seeds := 300
	if testing.Short() {
		seeds = 50
	}
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) { newScenario(t, seed).run() })
		})
	}
}

// scenario is one random sequence.
type scenario struct {
	t      *testing.T
	random *rand.Rand
	fake   *fakeEtcd
	p      *Publisher
	calls  sync.WaitGroup
	// resumes counts the calls of Resume.
	resumes atomic.Int32
	patient patient // whose health is checked, in some

	events EventLog
	story  []string

	mu sync.Mutex // guards random
}

func newScenario(t *testing.T, seed uint64) *scenario {
	s := &scenario{t: t, random: rand.New(rand.NewPCG(seed, 1)), fake: newFakeEtcd(t)}
	opts := []PubOption{WithObserver(s.events.Observe)}
	if s.pick(2) == 0 {
		opts = append(opts, WithId(7))
	}
	if s.pick(3) == 0 {
		opts = append(opts, WithBackgroundStart())
	}
	if s.pick(2) == 0 {
		policy := HealthPolicy{Interval: time.Second, Failures: 1 + s.pick(2), Successes: 1 + s.pick(2)}
		opts = append(opts, WithHealthCheck(s.patient.check, policy))
	}
	s.p = s.fake.publisher(opts...)
	return s
}

func (s *scenario) tell(format string, args ...any) {
	s.story = append(s.story, fmt.Sprintf("%s %s", time.Now().Format("04:05.000"), fmt.Sprintf(format, args...)))
}

func (s *scenario) run() {
	defer func() {
		if s.t.Failed() {
			s.t.Logf("%s\nevents: %v\n%v", strings.Join(s.story, "\n"), s.events.All(), s.fake)
		}
	}()
	s.fake.meets(s.meet)
	down, paused := false, false
	for range 30 {
		switch s.pick(13) {
		case 0, 1:
			paused = true
			s.call("pause", s.pause)
		case 2, 3:
			paused = false
			s.resumes.Add(1)
			s.call("resume", func(ctx context.Context) { _ = s.p.ResumeContext(ctx) })
		case 4:
			value := fmt.Sprint("v", s.pick(1000))
			s.call("update "+value, func(ctx context.Context) { _ = s.p.Update(ctx, value) })
		case 5, 6:
			s.call("keep alive", func(ctx context.Context) { _ = s.p.KeepAliveContext(ctx) })
		case 7:
			s.tell("delete the key")
			s.fake.remove(s.p.Status().Key)
		case 8:
			s.tell("end the lease")
			s.fake.expire(s.p.Status().Lease)
		case 9:
			s.tell("wipe")
			s.fake.wipe()
		case 10:
			if down = !down; down {
				s.tell("down")
				s.fake.down()
			} else {
				s.tell("back")
				s.fake.back()
			}
		case 11:
			s.fake.lend(99)
			s.fake.set(s.p.Status().Key, "another", []clientv3.LeaseID{0, 99}[s.pick(2)])
			s.tell("overwritten")
		case 12:
			s.patient.ill.Store(!s.patient.ill.Load())
			s.tell("ill %v", s.patient.ill.Load())
		}
		time.Sleep(time.Duration(s.pick(4_000_000)) * time.Microsecond)
	}
	if down {
		s.fake.back()
	}
	s.fake.heal()
	s.patient.ill.Store(false)
	s.fake.expire(99)
	s.calls.Wait()
	s.tell("all is well")
	settle(quietTime + 2*time.Second) // what may be put over in a minute may have been used up
	s.check(paused)
	s.tell("stop")
	require.NoError(s.t, s.p.StopContext(s.t.Context()))
	require.Empty(s.t, s.fake.leaseIDs())
	synctest.Wait()
	s.events.requireDrawn(s.t)
	require.Empty(s.t, s.fake.watches)
}

// call makes a call in the background, or waits for it, and checks its bound. The order in which background calls take
// hold is that of the story, because the bubble lets each get as far as it can.
func (s *scenario) call(name string, run func(context.Context)) {
	s.tell("%s", name)
	bound := defaultTimeout
	ctx, cancel := context.WithCancel(context.Background())
	if s.pick(3) == 0 {
		bound = time.Duration(s.pick(int(time.Second)))
		ctx, cancel = context.WithTimeout(context.Background(), bound)
	}
	s.calls.Go(func() {
		defer cancel()
		began := time.Now()
		run(ctx)
		if took := time.Since(began); took > bound+100*time.Millisecond {
			s.t.Errorf("%s took %v", name, took)
		}
	})
	synctest.Wait()
	if s.pick(2) == 0 {
		s.calls.Wait()
	}
}

// pause demands that nothing is there when Pause says so, unless a Resume has come.
func (s *scenario) pause(ctx context.Context) {
	resumes := s.resumes.Load()
	err := s.p.PauseContext(ctx)
	ids := slices.DeleteFunc(s.fake.leaseIDs(), func(id clientv3.LeaseID) bool { return id == 99 })
	if err == nil && s.resumes.Load() == resumes && len(ids) > 0 {
		s.t.Errorf("Pause returned nil, and there are leases %v", ids)
	}
}

// pick is a random number below n.
func (s *scenario) pick(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.random.IntN(n)
}

// meet is the trouble of one call.
func (s *scenario) meet(string) trouble {
	switch s.pick(8) {
	case 0:
		return trouble{before: errRefused}
	case 1:
		return trouble{after: errReset}
	case 2:
		return trouble{delay: time.Duration(s.pick(4_000_000)) * time.Microsecond}
	default:
		return trouble{}
	}
}

// check compares etcd with what the user wanted last.
func (s *scenario) check(paused bool) {
	status := s.p.Status()
	now := s.fake.at(status.Key)
	ids := s.fake.leaseIDs()
	switch {
	case status.State == StateIdle:
		require.Empty(s.t, ids, "a KeepAlive that failed leaves nothing")
	case paused:
		require.Equal(s.t, StatePaused, status.State)
		require.Empty(s.t, ids)
	default:
		require.Equal(s.t, StatePublished, status.State)
		require.Equal(s.t, []clientv3.LeaseID{status.Lease}, ids)
		require.Equal(s.t, etcd.Entry{Value: status.Value, Lease: status.Lease, Rev: now.Rev}, now)
	}
}
