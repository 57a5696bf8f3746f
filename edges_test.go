package discov

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/discov-go/discov/internal/etcd"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// farEtcd is out of reach, and a request that is given up hears so from gRPC, which knows of no caller.
type farEtcd struct{ *fakeEtcd }

func (f farEtcd) Ready(ctx context.Context) error {
	<-ctx.Done()
	return &etcd.UnsentError{Err: etcd.Because(context.DeadlineExceeded, "connection refused")}
}

func TestAKeepAliveThatIsCancelledSaysSoAndWhatEtcdWasDoing(t *testing.T) {
	why := errors.New("the process is going down")
	for name, end := range map[string]func(context.Context) (context.Context, func()){
		"cancelled": func(ctx context.Context) (context.Context, func()) { return context.WithCancel(ctx) },
		"cancelled with a cause": func(ctx context.Context) (context.Context, func()) {
			ctx, cancel := context.WithCancelCause(ctx)
			return ctx, func() { cancel(why) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeEtcd(t)
				p := f.publisher(WithId(7), quiet)
				p.connect = func(context.Context) (connected, error) { return connectedTo(farEtcd{f}), nil }
				ctx, cancel := end(t.Context())
				time.AfterFunc(300*time.Millisecond, cancel)
				began := time.Now()
				err := p.KeepAliveContext(ctx)
				require.LessOrEqual(t, time.Since(began), 400*time.Millisecond)
				require.ErrorIs(t, err, context.Canceled)
				require.ErrorIs(t, err, context.Cause(ctx))
				require.Regexp(t, `^discov: keep alive user\.rpc: (the process is going down: )?context canceled: .*connection refused`, err)
				require.Equal(t, StateIdle, p.Status().State)
				require.ErrorIs(t, p.Status().Err, context.Canceled)
				p.Stop()
			})
		})
	}
}

func TestAKeepAliveWhoseDeadlineIsOverSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEtcd(t)
		p := f.publisher(WithId(7), quiet)
		p.connect = func(context.Context) (connected, error) { return connectedTo(farEtcd{f}), nil }
		err := p.KeepAlive()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, context.Canceled)
		require.ErrorContains(t, err, "connection refused")
		p.Stop()
	})
}

// TestACallThatIsCancelledBeforeOrMeanwhileNamesItsCause: each call tells why its context ended, and that it did.
func TestACallThatIsCancelledBeforeOrMeanwhileNamesItsCause(t *testing.T) {
	why := errors.New("the process is going down")
	for name, call := range map[string]func(*Publisher, context.Context) error{
		"KeepAlive": (*Publisher).KeepAliveContext,
		"Pause":     (*Publisher).PauseContext,
		"Resume":    func(p *Publisher, ctx context.Context) error { p.Pause(); return p.ResumeContext(ctx) },
		"Update":    func(p *Publisher, ctx context.Context) error { return p.Update(ctx, "v1") },
		"Stop":      (*Publisher).StopContext,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeEtcd(t)
				p := f.publisher(WithId(7), quiet)
				if name != "KeepAlive" {
					require.NoError(t, p.KeepAlive())
				}
				f.down()
				ctx, cancel := context.WithCancelCause(t.Context())
				cancel(why)
				err := call(p, ctx)
				require.ErrorIs(t, err, context.Canceled)
				require.ErrorIs(t, err, why)
				f.back()
				p.Stop()
			})
		})
	}
}

func TestAKeepAliveThatFailsForGoodTellsItOnceAsFailed(t *testing.T) {
	denied := func(f *fakeEtcd, _ *Publisher) {
		f.meets(func(op string) trouble {
			if op == "put" {
				return trouble{before: rpctypes.ErrPermissionDenied}
			}
			return trouble{}
		})
	}
	noClient := func(_ *fakeEtcd, p *Publisher) {
		p.connect = func(context.Context) (connected, error) { return connected{}, errors.New("no client") }
	}
	for name, spoil := range map[string]func(*fakeEtcd, *Publisher){
		"a permission is lacking":     denied,
		"no client can be made":       noClient,
		"in the background, likewise": noClient,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, events, log := newFakeEtcd(t), &eventLog{}, &lineCount{}
				opts := []PubOption{WithId(7), WithObserver(events.observe), WithLogger(slog.New(log))}
				if name == "in the background, likewise" {
					opts = append(opts, WithBackgroundStart())
				}
				p := f.publisher(opts...)
				spoil(f, p)
				err := p.KeepAlive()
				require.Error(t, err)
				synctest.Wait()
				require.Equal(t, []State{StateRegistering, StateIdle}, events.states())
				require.Len(t, events.events, 2)
				require.NoError(t, events.events[0].Err)
				require.ErrorIs(t, err, events.events[1].Err)
				require.Equal(t, events.events[1].Err, p.Status().Err)
				require.NotContains(t, log.String(), "not done yet")
				p.Stop()
			})
		})
	}
}

func TestAKeepAliveThatTriesAgainTellsEachFailureOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, events, log := newFakeEtcd(t), &eventLog{}, &lineCount{}
		f.meets(func(op string) trouble {
			if op == "put" {
				return trouble{before: fmt.Errorf("refused, try %d", len(f.calls))}
			}
			return trouble{}
		})
		p := f.publisher(WithId(7), WithObserver(events.observe), WithLogger(slog.New(log)))
		require.Error(t, p.KeepAlive())
		synctest.Wait()
		told := map[string]int{}
		for _, e := range events.events {
			if e.Err != nil {
				told[e.Err.Error()]++
			}
		}
		require.Greater(t, len(told), 3)
		for err, times := range told {
			require.Equal(t, 1, times, err)
		}
		require.Equal(t, 1, strings.Count(log.String(), "registering is not done yet"))
		p.Stop()
	})
}

func TestAKeepAliveThatIsGivenUpAsItSucceedsTellsItOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, events := newFakeEtcd(t), &eventLog{}
		p := f.publisher(WithId(7), quiet, WithObserver(events.observe))
		ctx, giveUp := context.WithCancel(t.Context())
		p.connect = func(context.Context) (connected, error) { return connectedTo(lateEtcd{f, giveUp}), nil }
		require.ErrorIs(t, p.KeepAliveContext(ctx), context.Canceled)
		settle(2 * time.Second)
		var told []error
		for _, e := range events.events {
			if e.Err != nil {
				told = append(told, e.Err)
			}
		}
		require.Len(t, told, 1)
		require.ErrorIs(t, told[0], context.Canceled)
		p.Stop()
	})
}
