package discov

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/discov-go/discov/internal/bubble"
	"github.com/discov-go/discov/internal/etcd"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// The tests in this file run in virtual time, over a fake etcd.

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
	require.NoError(f.t, k.begin(newStart(bound), r))
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
