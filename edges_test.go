package discov

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/discov-go/discov/internal/bubble"
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

// ownContext is not known to package context, which tells the contexts below it in any order that it is done.
type ownContext struct {
	context.Context
	done <-chan struct{}
}

func (c ownContext) Done() <-chan struct{} { return c.done }

func (c ownContext) Value(any) any { return nil }

func TestAKeepAliveThatIsCancelledSaysSoAndWhatEtcdWasDoing(t *testing.T) {
	why := errors.New("the process is going down")
	for name, end := range map[string]func(context.Context) (context.Context, func()){
		"cancelled": func(ctx context.Context) (context.Context, func()) { return context.WithCancel(ctx) },
		"cancelled with a cause": func(ctx context.Context) (context.Context, func()) {
			ctx, cancel := context.WithCancelCause(ctx)
			return ctx, func() { cancel(why) }
		},
		"cancelled, a context of the caller's own type": func(ctx context.Context) (context.Context, func()) {
			ctx, cancel := context.WithCancel(ctx)
			return ownContext{ctx, ctx.Done()}, cancel
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				p := f.publisher(WithId(7))
				p.connect = func(_, _ context.Context) (connected, error) { return connectedTo(farEtcd{f}), nil }
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

func TestAPauseThatIsTakenBackWhileAKeepAliveIsUnderWayIsNoFailure(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		events := &EventLog{}
		p := f.publisher(WithId(7), WithObserver(events.Observe))
		f.meets(troubles{"grant": {delay: 300 * time.Millisecond}}.of)
		done := make(chan error, 1)
		go func() { done <- p.KeepAlive() }()
		settle(100 * time.Millisecond)
		now, cancel := context.WithCancel(t.Context())
		cancel()
		_ = p.PauseContext(now)
		_ = p.ResumeContext(now)
		require.NoError(t, <-done)
		synctest.Wait()
		for _, event := range events.All() {
			require.NoError(t, event.Err)
		}
		p.Stop()
	})
}

func TestAKeepAliveWhoseDeadlineIsOverSaysSo(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.publisher(WithId(7))
		p.connect = func(_, _ context.Context) (connected, error) { return connectedTo(farEtcd{f}), nil }
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
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				p := f.publisher(WithId(7))
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
		f.meets(troubles{"put": {before: rpctypes.ErrPermissionDenied}}.of)
	}
	noClient := func(_ *fakeEtcd, p *Publisher) {
		p.connect = func(_, _ context.Context) (connected, error) { return connected{}, errors.New("no client") }
	}
	for name, spoil := range map[string]func(*fakeEtcd, *Publisher){
		"a permission is lacking":     denied,
		"no client can be made":       noClient,
		"in the background, likewise": noClient,
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				events, log := &EventLog{}, &LogLines{}
				opts := []PubOption{WithId(7), WithObserver(events.Observe), log.Option()}
				if name == "in the background, likewise" {
					opts = append(opts, WithBackgroundStart())
				}
				p := f.publisher(opts...)
				spoil(f, p)
				err := p.KeepAlive()
				require.Error(t, err)
				synctest.Wait()
				require.Equal(t, []State{StateRegistering, StateIdle}, events.states())
				require.Len(t, events.All(), 2)
				require.NoError(t, events.All()[0].Err)
				require.ErrorIs(t, err, events.All()[1].Err)
				require.Equal(t, events.All()[1].Err, p.Status().Err)
				require.NotContains(t, log.String(), "not done yet")
				p.Stop()
			})
		})
	}
}

func TestAKeepAliveThatTriesAgainTellsEachFailureOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		events, log := &EventLog{}, &LogLines{}
		f.meets(func(op string) trouble {
			if op == "put" {
				return trouble{before: fmt.Errorf("refused, try %d", len(f.calls))}
			}
			return trouble{}
		})
		p := f.publisher(WithId(7), WithObserver(events.Observe), log.Option())
		require.Error(t, p.KeepAlive())
		synctest.Wait()
		told := map[string]int{}
		for _, e := range events.All() {
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
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		events := &EventLog{}
		p := f.publisher(WithId(7), WithObserver(events.Observe))
		ctx, giveUp := context.WithCancel(t.Context())
		p.connect = func(_, _ context.Context) (connected, error) { return connectedTo(lateEtcd{f, giveUp}), nil }
		require.ErrorIs(t, p.KeepAliveContext(ctx), context.Canceled)
		settle(2 * time.Second)
		var told []error
		for _, e := range events.All() {
			if e.Err != nil {
				told = append(told, e.Err)
			}
		}
		require.Len(t, told, 1)
		require.ErrorIs(t, told[0], context.Canceled)
		p.Stop()
	})
}

func TestANilOptionIsBadInput(t *testing.T) {
	p := NewPublisher([]string{"127.0.0.1:1"}, "k", "v", WithId(7), nil, Quiet)
	err := p.KeepAlive()
	require.ErrorIs(t, err, ErrOptions)
	require.ErrorContains(t, err, "PubOption 2 of 3 is nil")
	require.NoError(t, p.StopContext(t.Context()))

	p, err = goodConfig().NewPublisher("v", nil)
	require.NoError(t, err)
	require.ErrorIs(t, p.KeepAlive(), ErrOptions)
	p.Stop()
}

func TestAZeroPublisherIsBadInputAndNeverPanics(t *testing.T) {
	for name, call := range map[string]func(*Publisher, context.Context) error{
		"KeepAlive": func(p *Publisher, ctx context.Context) error {
			require.ErrorIs(t, p.KeepAlive(), ErrOptions)
			require.ErrorContains(t, p.KeepAliveContext(ctx), "NewPublisher did not make it")
			return nil
		},
		"Pause":           func(p *Publisher, _ context.Context) error { p.Pause(); return nil },
		"PauseContext":    (*Publisher).PauseContext,
		"Resume":          func(p *Publisher, _ context.Context) error { p.Resume(); return nil },
		"ResumeContext":   (*Publisher).ResumeContext,
		"Update":          func(p *Publisher, ctx context.Context) error { return p.Update(ctx, "v") },
		"an empty Update": func(p *Publisher, ctx context.Context) error { require.Error(t, p.Update(ctx, "")); return nil },
		"Status":          func(p *Publisher, _ context.Context) error { require.Equal(t, StateIdle, p.Status().State); return nil },
		"Stop":            func(p *Publisher, _ context.Context) error { p.Stop(); return nil },
		"StopContext":     (*Publisher).StopContext,
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				began := time.Now()
				var p Publisher
				require.NoError(t, call(&p, t.Context()))
				require.Zero(t, time.Since(began))
				require.NoError(t, p.StopContext(t.Context()))
				require.Equal(t, StateStopped, p.Status().State)
				require.ErrorIs(t, p.PauseContext(t.Context()), ErrStopped)
			})
		})
	}
}

func TestAnErrorAboutTLSFilesNamesTheirOption(t *testing.T) {
	p := NewPublisher([]string{"127.0.0.1:1"}, "k", "v", WithPubEtcdTLS("missing.pem", "missing.key", "", false), Quiet)
	err := p.KeepAlive()
	require.ErrorIs(t, err, ErrTLS)
	require.ErrorContains(t, err, "WithPubEtcdTLS: certificate file missing.pem")
	require.ErrorContains(t, err, "WithPubEtcdTLS: no CA file")
}

func TestATimeoutThatCannotWorkWithTheTTLIsBadInput(t *testing.T) {
	for _, c := range []struct {
		ttl, timeout time.Duration
		bad          bool
	}{
		{time.Second, time.Hour, true},
		{defaultTTL, time.Hour, true},
		{time.Second, 10*time.Second + 1, true},
		{time.Second, 10 * time.Second, false},
		{time.Second, defaultTimeout, false},
		{2 * time.Second, defaultTimeout, false},
		{3 * time.Second, 20 * time.Second, false},
		{defaultTTL, defaultTimeout, false},
		{defaultTTL, 20 * time.Second, false},
		{defaultTTL, time.Minute, false},
		{time.Hour, minTimeout, false},
		{time.Hour, time.Hour, false},
		{maxTTL * time.Second, 1<<63 - 1, false},
	} {
		t.Run(fmt.Sprint(c.ttl, c.timeout), func(t *testing.T) {
			err := NewPublisher([]string{"h:1"}, "k", "v", WithTimeout(c.timeout), WithTTL(c.ttl)).validate()
			config := goodConfig()
			config.TTL, config.Timeout = c.ttl, c.timeout
			ofConfig := config.Validate()
			if !c.bad {
				require.NoError(t, err)
				require.NoError(t, ofConfig)
				return
			}
			require.ErrorIs(t, err, ErrTimeout)
			require.NotErrorIs(t, err, ErrTTL)
			require.ErrorContains(t, err, fmt.Sprintf("WithTimeout(%v)", c.timeout))
			require.ErrorContains(t, err, fmt.Sprintf("TTL of %v", c.ttl))
			require.ErrorIs(t, ofConfig, ErrTimeout)
			require.ErrorContains(t, ofConfig, fmt.Sprintf("Timeout is %v", c.timeout))
			require.ErrorContains(t, ofConfig, fmt.Sprintf("TTL of %v", c.ttl))
		})
	}
}

func TestATimeoutIsHeldAgainstTheDefaultTTL(t *testing.T) {
	require.ErrorIs(t, NewPublisher([]string{"h:1"}, "k", "v", WithTimeout(101*time.Second)).validate(), ErrTimeout)
	config := goodConfig()
	config.Timeout = 101 * time.Second
	require.ErrorIs(t, config.Validate(), ErrTimeout)
	config.Timeout = 100 * time.Second
	require.NoError(t, config.Validate())
}

func TestATTLThatIsBadByItselfIsNotHeldAgainstTheTimeout(t *testing.T) {
	err := NewPublisher([]string{"h:1"}, "k", "v", WithTTL(-1)).validate()
	require.ErrorIs(t, err, ErrTTL)
	require.NotErrorIs(t, err, ErrTimeout)
}

func TestAStopThatCutsAConnectShortIsNoFailure(t *testing.T) {
	for name, opts := range map[string][]PubOption{
		"KeepAlive waits":   nil,
		"in the background": {WithBackgroundStart()},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				events := &EventLog{}
				p := f.publisher(append([]PubOption{WithId(7), WithObserver(events.Observe)}, opts...)...)
				p.connect = func(_, stop context.Context) (connected, error) {
					<-stop.Done()
					return connected{}, stop.Err()
				}
				started := later(p.KeepAlive)
				settle(time.Second)
				began := time.Now()
				require.NoError(t, p.StopContext(t.Context()))
				require.Zero(t, time.Since(began))
				if err := <-started; opts == nil {
					require.ErrorIs(t, err, ErrStopped)
				} else {
					require.NoError(t, err)
				}
				synctest.Wait()
				require.Equal(t, []State{StateRegistering, StateWithdrawing, StateStopped}, events.states())
				for _, e := range events.All() {
					require.NoError(t, e.Err)
				}
			})
		})
	}
}
