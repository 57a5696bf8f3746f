package discov

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/discov-go/discov/internal/etcd"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The tests in this file are about a Publisher whose KeepAlive has failed and could not withdraw what it had registered.

// cleanUpBegun waits until a KeepAlive that failed revokes its lease.
func (f *fakeEtcd) cleanUpBegun() {
	for len(f.requests("revoke")) == 0 {
		time.Sleep(time.Millisecond)
	}
}

func requireWithdrawError(t *testing.T, err error) *WithdrawError {
	t.Helper()
	var withdraw *WithdrawError
	require.ErrorAs(t, err, &withdraw)
	require.Equal(t, fakeKey, withdraw.Key)
	require.Less(t, time.Until(withdraw.Until), time.Minute+time.Second)
	return withdraw
}

func TestAKeyThatAFailedKeepAliveHasLeftGoesAsSoonAsEtcdAnswers(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		events, log := &EventLog{}, &LogLines{}
		p := f.leftKey(WithObserver(events.Observe), log.Option())
		failed := p.KeepAlive()
		left := requireWithdrawError(t, failed)
		settle(20 * time.Second)
		status := p.Status()
		require.True(t, f.at(fakeKey).Exists())
		require.Equal(t, StateIdle, status.State)
		require.ErrorContains(t, status.Err, "connection reset", "why KeepAlive failed")
		require.Equal(t, left.Until, status.Until)
		require.Zero(t, status.Lease)
		require.Equal(t, []State{StateRegistering, StateIdle}, events.states())
		require.NotContains(t, log.String(), "idle is not done yet")
		f.heal()
		settle(time.Second)
		require.False(t, f.at(fakeKey).Exists())
		require.Zero(t, p.Status().Until)
		require.Equal(t, 1, f.released(), "nothing goes on")
		require.NoError(t, p.StopContext(t.Context()))
		synctest.Wait()
		require.Equal(t, []State{StateRegistering, StateIdle, StateStopped}, events.states())
	})
}

func TestAKeyThatAFailedKeepAliveHasLeftIsGivenUpWhenItHasGoneByItself(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.leftKey()
		left := requireWithdrawError(t, p.KeepAlive())
		settle(time.Until(left.Until) - time.Second)
		require.Zero(t, f.released())
		settle(2 * time.Second)
		require.False(t, f.at(fakeKey).Exists())
		require.Equal(t, 1, f.released())
		require.Equal(t, StateIdle, p.Status().State)
		require.NoError(t, p.PauseContext(t.Context()))
		require.NoError(t, p.StopContext(t.Context()))
	})
}

func TestAStopAroundAKeepAliveThatFailedTriesOn(t *testing.T) {
	for name, stop := range map[string]func(*testing.T, *fakeEtcd, *Publisher) error{
		"while it cleans up": func(t *testing.T, f *fakeEtcd, p *Publisher) error {
			failed := later(p.KeepAlive)
			f.cleanUpBegun()
			err := p.StopContext(t.Context())
			requireWithdrawError(t, <-failed)
			return err
		},
		"after it": func(t *testing.T, _ *fakeEtcd, p *Publisher) error {
			requireWithdrawError(t, p.KeepAlive())
			return p.StopContext(t.Context())
		},
		"after a Pause after it": func(t *testing.T, _ *fakeEtcd, p *Publisher) error {
			requireWithdrawError(t, p.KeepAlive())
			requireWithdrawError(t, p.PauseContext(t.Context()))
			return p.StopContext(t.Context())
		},
	} {
		for _, heals := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, etcd heals: %v", name, heals), func(t *testing.T) {
				inBubble(t, func(t *testing.T, f *fakeEtcd) {
					p := f.leftKey()
					began := time.Now()
					left := requireWithdrawError(t, stop(t, f, p))
					require.LessOrEqual(t, time.Since(began), 3*defaultTimeout)
					require.Equal(t, StateWithdrawing, p.Status().State)
					require.Error(t, p.Status().Err)
					settle(20 * time.Second)
					require.Equal(t, StateWithdrawing, p.Status().State)
					require.True(t, f.at(fakeKey).Exists())
					if heals {
						f.heal()
						settle(time.Second)
						require.NoError(t, p.StopContext(t.Context()))
					} else {
						settle(time.Minute)
						require.False(t, time.Now().Before(left.Until))
						requireWithdrawError(t, p.StopContext(t.Context()))
					}
					require.False(t, f.at(fakeKey).Exists())
					require.Equal(t, StateStopped, p.Status().State)
					require.Equal(t, 1, f.released())
				})
			})
		}
	}
}

func TestAPauseAroundAKeepAliveThatFailedIsDoneWhenTheKeyIsGone(t *testing.T) {
	for name, pause := range map[string]func(*testing.T, *fakeEtcd, *Publisher) error{
		"while it cleans up": func(t *testing.T, f *fakeEtcd, p *Publisher) error {
			failed := later(p.KeepAlive)
			f.cleanUpBegun()
			err := p.PauseContext(t.Context())
			requireWithdrawError(t, <-failed)
			return err
		},
		"after it": func(t *testing.T, _ *fakeEtcd, p *Publisher) error {
			requireWithdrawError(t, p.KeepAlive())
			return p.PauseContext(t.Context())
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				p := f.leftKey()
				requireWithdrawError(t, pause(t, f, p))
				require.Equal(t, StateWithdrawing, p.Status().State)
				require.Error(t, p.Status().Err)
				f.heal()
				require.NoError(t, p.PauseContext(t.Context()))
				require.False(t, f.at(fakeKey).Exists())
				require.Equal(t, StatePaused, p.Status().State)
				require.NoError(t, p.Status().Err)
				require.NoError(t, p.KeepAlive(), "which waits for Resume")
				require.NoError(t, p.ResumeContext(t.Context()))
				require.True(t, f.at(fakeKey).Exists())
				p.Stop()
			})
		})
	}
}

func TestAResumeKeepsWhyKeepAliveFailed(t *testing.T) {
	for name, left := range map[string]bool{"with its key left": true, "with nothing left": false} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				p := f.leftKey()
				if !left {
					f.meets(troubles{"put": {after: errReset}}.of)
				}
				require.Error(t, p.KeepAlive())
				require.NoError(t, p.ResumeContext(t.Context()))
				require.ErrorContains(t, p.Status().Err, "connection reset")
				if left {
					require.Error(t, p.PauseContext(t.Context()))
					require.NoError(t, p.ResumeContext(t.Context()))
					require.Equal(t, StateIdle, p.Status().State)
					require.Error(t, p.Status().Err)
					require.True(t, f.at(fakeKey).Exists())
				}
				f.heal()
				settle(time.Second)
				require.False(t, f.at(fakeKey).Exists())
				p.Stop()
			})
		})
	}
}

func TestAKeepAliveAfterOneThatFailedTakesOverWhatThatHasLeft(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.leftKey()
		for range 3 {
			requireWithdrawError(t, p.KeepAlive())
			settle(3 * time.Second)
		}
		f.meets(troubles{"revoke": {before: errRefused}}.of)
		require.NoError(t, p.KeepAlive(), "it is put over what is left")
		require.ErrorIs(t, p.KeepAlive(), ErrStarted)
		require.Equal(t, p.Status().Lease, f.at(fakeKey).Lease)
		f.heal()
		settle(time.Minute)
		require.Equal(t, []clientv3.LeaseID{p.Status().Lease}, f.leaseIDs())
		require.NoError(t, p.StopContext(t.Context()))
		require.Empty(t, f.leaseIDs())
		require.Equal(t, 1, f.released())
	})
}

func TestAStopBeforeTheNextKeepAliveIsHeardEndsBoth(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.leftKey()
		requireWithdrawError(t, p.KeepAlive())
		second := later(p.KeepAlive)
		_ = p.StopContext(deadline(t, time.Second))
		require.ErrorIs(t, <-second, ErrStopped)
		f.heal()
		require.NoError(t, p.StopContext(t.Context()))
		require.Empty(t, f.leaseIDs())
		require.Equal(t, 1, f.released())
	})
}

// TestAKeepAliveThatIsGivenUpInAGrantReturnsInTime: a grant is bounded, not cancelled.
func TestAKeepAliveThatIsGivenUpInAGrantReturnsInTime(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.publisher(WithId(7))
		p.connect = func(_, _ context.Context) (connected, error) {
			on := connectedTo(stubbornEtcd{f})
			on.release = f.release
			return on, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		err := p.KeepAliveContext(ctx)
		require.ErrorIs(t, err, context.Canceled)
		require.LessOrEqual(t, time.Since(began), time.Second+100*time.Millisecond)
		requireWithdrawError(t, err)
		require.ErrorIs(t, p.KeepAlive(), ErrStarted, "it is still under way")
		settle(3 * time.Second)
		require.Empty(t, f.leaseIDs())
		require.Equal(t, StateIdle, p.Status().State)
		require.Equal(t, 1, f.released())
		p.Stop()
	})
}

// stubbornEtcd answers a grant after two seconds, whether it was given up or not.
type stubbornEtcd struct{ *fakeEtcd }

func (s stubbornEtcd) Grant(ctx context.Context, ttl time.Duration, next func() clientv3.LeaseID) (*etcd.Keepalive, []clientv3.LeaseID, error) {
	time.Sleep(2 * time.Second)
	return s.fakeEtcd.Grant(context.WithoutCancel(ctx), ttl, next)
}
