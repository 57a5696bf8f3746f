package discov

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

func TestLossesAreCountedByTheirCause(t *testing.T) {
	for name, tried := range map[string]struct {
		fault func(*fakeEtcd, *Publisher)
		cause Cause
		puts  int
		fails bool
	}{
		"the lease has ended": {fault: func(f *fakeEtcd, p *Publisher) { f.expire(p.Status().Lease) }, cause: CauseLeaseEnded, puts: 1},
		"deleted":             {fault: func(f *fakeEtcd, _ *Publisher) { f.remove(fakeKey) }, cause: CauseKeyDeleted, puts: 1},
		"changed": {
			fault: func(f *fakeEtcd, p *Publisher) { f.set(fakeKey, "wrong", p.Status().Lease) }, cause: CauseKeyChanged, puts: 1,
		},
		"wiped": {fault: func(f *fakeEtcd, _ *Publisher) { f.wipe() }, cause: CauseStoreWentBack, puts: 1},
		"out of reach": {
			fault: func(f *fakeEtcd, _ *Publisher) { f.down(); settle(time.Minute); f.back() }, cause: CauseUnreachable, puts: 1,
			fails: true,
		},
		"deleted, and denied for a while": {
			fault: func(f *fakeEtcd, _ *Publisher) {
				f.meets(troubles{"get": {before: rpctypes.ErrPermissionDenied}, "put": {before: rpctypes.ErrPermissionDenied}}.of)
				f.remove(fakeKey)
				settle(time.Second)
				f.heal()
			},
			cause: CauseKeyDeleted, puts: 1, fails: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				p := f.published(WithId(7))
				settle(time.Second)
				before := p.Stats()
				require.Equal(t, 1, before.Registrations)
				require.Len(t, before.Losses, len(causeNames)-1)
				tried.fault(f, p)
				settle(2 * time.Minute)
				require.Equal(t, StatePublished, p.Status().State)
				after := p.Stats()
				for cause, n := range after.Losses {
					want := 0
					if cause == tried.cause {
						want = 1
					}
					require.Equal(t, want, n, "%v", cause)
				}
				require.Equal(t, before.Registrations+tried.puts, after.Registrations)
				require.Greater(t, after.Attempts, before.Attempts)
				require.Equal(t, tried.fails, after.Failures > before.Failures)
				p.Stop()
			})
		})
	}
}

func TestWhatIsWithdrawnIsNotLost(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		require.NoError(t, p.PauseContext(t.Context()))
		f.down()
		p.Resume()
		settle(time.Minute)
		f.back()
		settle(time.Minute)
		require.Equal(t, StatePublished, p.Status().State)
		for cause, n := range p.Stats().Losses {
			require.Zero(t, n, "%v", cause)
		}
		require.NotZero(t, p.Stats().Failures)
		p.Stop()
	})
}

func TestStatsTellOfTheLastRenewalAndTheLastRegistration(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.publisher(WithId(7))
		require.Zero(t, p.Stats().LastRenewal)
		require.Zero(t, p.Stats().LastRegistration)
		f.meets(troubles{"put": {delay: 70 * time.Millisecond}}.of)
		began := time.Now()
		require.NoError(t, p.KeepAlive())
		require.Equal(t, 70*time.Millisecond, p.Stats().LastRegistration)
		require.Equal(t, began, p.Stats().LastRenewal)
		settle(time.Minute)
		require.WithinRange(t, p.Stats().LastRenewal, began.Add(time.Minute-defaultTTL/3), began.Add(time.Minute))
		renewed := p.Stats().LastRenewal
		p.Pause()
		settle(time.Minute)
		require.Equal(t, renewed, p.Stats().LastRenewal, "nothing is renewed while paused")
		require.Equal(t, 70*time.Millisecond, p.Stats().LastRegistration)
		p.Resume()
		require.Equal(t, 70*time.Millisecond, p.Stats().LastRegistration, "not since it was paused")
		require.Equal(t, 2, p.Stats().Registrations)
		p.Stop()
		require.Equal(t, 2, p.Stats().Registrations)
	})
}

func TestConflictsAreCounted(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		f.lend(99)
		f.set(fakeKey, "another's", 99)
		settle(time.Second)
		require.Equal(t, StateConflict, p.Status().State)
		require.Equal(t, 1, p.Stats().Conflicts)
		require.Equal(t, 1, p.Stats().Losses[CauseKeyChanged])
		f.expire(99)
		settle(time.Minute)
		require.Equal(t, StatePublished, p.Status().State)
		require.Equal(t, 1, p.Stats().Conflicts)
		require.Equal(t, 2, p.Stats().Registrations)
		p.Stop()
	})
}

func TestEveryObserverIsTold(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		first, second := &EventLog{}, &EventLog{}
		panics := func(Event) { panic("oh dear") }
		p := f.published(WithId(7), WithObserver(first.Observe), WithObserver(panics), WithObserver(second.Observe))
		p.Stop()
		synctest.Wait()
		require.NotEmpty(t, first.All())
		require.Equal(t, first.All(), second.All())
	})
}

func TestTheFullKeyIsKnownBeforehandWhereItCanBe(t *testing.T) {
	for want, opts := range map[string][]PubOption{
		"user.rpc/7": {WithId(7)},
		"user.rpc":   {WithExactKey()},
		"":           nil,
	} {
		require.Equal(t, want, NewPublisher([]string{"127.0.0.1:1"}, "user.rpc", "v", opts...).Status().Key)
	}
}

func TestALossIsOfWhatWasPublished(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		var patient patient
		p := f.published(WithId(7), WithHealthCheck(patient.check, HealthPolicy{}))
		patient.ill.Store(true)
		settle(time.Minute)
		f.lend(99)
		f.set(fakeKey, "another's", 99)
		patient.ill.Store(false)
		settle(time.Minute)
		require.Equal(t, StateConflict, p.Status().State)
		f.expire(99)
		settle(time.Minute)
		require.Equal(t, StatePublished, p.Status().State)
		for cause, n := range p.Stats().Losses {
			require.Equal(t, cause == CauseUnhealthy, n == 1, "%v: %d", cause, n)
		}
		p.Stop()
	})
}

func TestAnOutageThatAnUpdateMeetsFirstIsALoss(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		f.meets(func(string) trouble { return trouble{before: errReset} }) // nothing works, but no watch has ended yet
		require.Error(t, p.Update(deadline(t, time.Second), "v1"))
		settle(time.Minute)
		f.heal()
		settle(time.Minute)
		require.Equal(t, StatePublished, p.Status().State)
		require.Equal(t, 1, p.Stats().Losses[CauseUnreachable])
		p.Stop()
	})
}

func TestAnUpdateIsNoLossAndNoRegistration(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		settle(time.Second)
		before := p.Stats()
		require.NoError(t, p.Update(t.Context(), "v1"))
		f.meets(troubles{"get": {delay: 100 * time.Millisecond}}.of)
		f.mu.Lock()
		f.endWatchesLocked() // harmless, but it is read again
		f.mu.Unlock()
		settle(50 * time.Millisecond)
		require.NoError(t, p.Update(t.Context(), "v2"))
		settle(time.Second)
		after := p.Stats()
		require.Equal(t, before.Losses, after.Losses)
		require.Equal(t, before.Registrations, after.Registrations)
		require.Equal(t, before.LastRegistration, after.LastRegistration)
		require.Greater(t, after.Attempts, before.Attempts)
		p.Stop()
	})
}

func TestALossWhoseMendIsCutShortIsCounted(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		f.meets(troubles{"put": {delay: time.Second}}.of)
		f.remove(fakeKey)
		settle(100 * time.Millisecond)
		p.Pause()
		require.Equal(t, 1, p.Stats().Losses[CauseKeyDeleted])
		p.Stop()
	})
}
