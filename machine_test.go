package discov

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/discov-go/discov/internal/backoff"
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

func TestOnlyALeaseWhoseEndNobodyHasToldMakesOthersLookedFor(t *testing.T) {
	for name, opts := range map[string][]PubOption{"with an id": {WithId(7)}, "without": nil} {
		inBubble(t, func(t *testing.T, f *fakeEtcd) {
			p := f.published(append(opts, WithTTL(time.Hour))...) // so that no renewal tells it
			ends := func(how func(clientv3.LeaseID), within time.Duration) {
				was := p.Status().Lease
				f.mu.Lock()
				how(was)
				f.mu.Unlock()
				settle(within)
				require.NotEqual(t, was, p.Status().Lease, name)
				require.True(t, f.at(p.Status().Key).Exists(), name)
			}
			for range 5 {
				ends(f.endLocked, 2*calm)
			}
			require.Empty(t, f.requests("leases"), "the watch has told of it, and goes on: etcd was not restored")
			ends(func(was clientv3.LeaseID) { f.endWatchesLocked(); f.endLocked(was) }, 2*calm)
			require.Len(t, f.requests("leases"), 1, "nobody knows what has come between")
			ends(func(was clientv3.LeaseID) {
				watches := f.watches
				f.watches = nil
				f.endLocked(was)
				f.watches = watches
			}, 2*fakeAuditEvery)
			require.Len(t, f.requests("leases"), 2, "a read has told of it, and nobody why it was so")
			p.Stop()
		})
	}
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
