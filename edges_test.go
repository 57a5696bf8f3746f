package discov

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/discov-go/discov/internal/etcd"
	"github.com/stretchr/testify/require"
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
