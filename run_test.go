package discov

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRunRegistersAndWithdrawsWhenItsContextIsDone(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.publisher(WithId(7), WithDrain(time.Second))
		ctx, cancel := context.WithCancel(t.Context())
		ran := later(func() error { return p.Run(ctx) })
		settle(time.Hour)
		require.True(t, f.at(fakeKey).Exists())
		cancel()
		synctest.Wait()
		require.False(t, f.at(fakeKey).Exists(), "it is withdrawn before the drain")
		cancelled := time.Now()
		require.NoError(t, <-ran)
		require.Equal(t, time.Second, time.Since(cancelled))
		require.Equal(t, StateStopped, p.Status().State)
	})
}

func TestRunReturnsHowItEnded(t *testing.T) {
	isDone := func(ctx context.Context) context.Context {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		return ctx
	}
	soonDone := func(ctx context.Context) context.Context {
		ctx, cancel := context.WithCancel(ctx)
		time.AfterFunc(100*time.Millisecond, cancel)
		return ctx
	}
	for name, tried := range map[string]struct {
		ctx   func(context.Context) context.Context // nil for one that goes on
		opts  []PubOption
		meet  func(*fakeEtcd, *Publisher)
		want  error // nil for none
		state State
	}{
		"its context was done before":       {ctx: isDone, state: StateStopped},
		"bad input, its context done":       {ctx: isDone, opts: []PubOption{WithTTL(-1)}, want: ErrTTL, state: StateIdle},
		"etcd out of reach":                 {meet: func(f *fakeEtcd, _ *Publisher) { f.down() }, want: context.DeadlineExceeded, state: StateIdle},
		"stopped before":                    {meet: func(_ *fakeEtcd, p *Publisher) { p.Stop() }, want: ErrStopped, state: StateStopped},
		"stopped by somebody else":          {meet: func(_ *fakeEtcd, p *Publisher) { time.AfterFunc(time.Second, p.Stop) }, state: StateStopped},
		"started by somebody else":          {meet: func(_ *fakeEtcd, p *Publisher) { _ = p.KeepAlive() }, want: ErrStarted, state: StatePublished},
		"cancelled while etcd is not there": {ctx: soonDone, meet: func(f *fakeEtcd, _ *Publisher) { f.down() }, state: StateStopped},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				p := f.publisher(append(tried.opts, WithId(7))...)
				if tried.meet != nil {
					tried.meet(f, p)
				}
				ctx := t.Context()
				if tried.ctx != nil {
					ctx = tried.ctx(ctx)
				}
				err := p.Run(ctx)
				if tried.want == nil {
					require.NoError(t, err)
				} else {
					require.ErrorIs(t, err, tried.want)
				}
				require.Equal(t, tried.state, p.Status().State)
				p.Stop()
			})
		})
	}
}

func TestRunTellsThatTheWithdrawalIsNotConfirmed(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.publisher(WithId(7), WithDrain(time.Minute))
		ctx, cancel := context.WithCancel(t.Context())
		ran := later(func() error { return p.Run(ctx) })
		settle(time.Second)
		f.down()
		began := time.Now()
		cancel()
		var left *WithdrawError
		require.ErrorAs(t, <-ran, &left)
		require.Equal(t, defaultTimeout, time.Since(began), "a key that may be there is not drained")
		f.back()
		p.Stop()
	})
}

func TestStopAndPauseWaitUntilCallersHaveNoticed(t *testing.T) {
	const drain = 10 * time.Second // longer than the timeout
	calls := map[string]func(*Publisher, context.Context) error{
		"Pause": (*Publisher).PauseContext,
		"Stop":  (*Publisher).StopContext,
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				p := f.published(WithId(7), WithDrain(drain))
				began := time.Now()
				require.NoError(t, call(p, t.Context()))
				require.Equal(t, drain, time.Since(began))
				require.NoError(t, call(p, t.Context()))
				require.Equal(t, drain, time.Since(began), "once is enough")
				p.Stop()
				require.Equal(t, drain, time.Since(began))
			})
		})
		t.Run(name+" with a deadline", func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				p := f.published(WithId(7), WithDrain(drain))
				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				require.NoError(t, call(p, ctx), "the key is gone all the same")
				require.Equal(t, time.Second, time.Since(began))
				require.False(t, f.at(fakeKey).Exists())
				p.Stop()
				require.Equal(t, drain, time.Since(began), "who comes later waits for the same end")
			})
		})
		t.Run(name+" of what nobody has found", func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				p := f.publisher(WithId(7), WithDrain(drain))
				began := time.Now()
				require.NoError(t, call(p, t.Context()))
				require.Zero(t, time.Since(began))
				p.Stop()
			})
		})
	}
}

func TestAResumeOrAStopEndsTheDrainOfAPause(t *testing.T) {
	for name, tried := range map[string]struct {
		call func(*Publisher)
		want error
	}{
		"Resume": {(*Publisher).Resume, ErrSuperseded},
		"Stop":   {func(p *Publisher) { go p.Stop() }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				p := f.published(WithId(7), WithDrain(time.Minute))
				paused := later(func() error { return p.PauseContext(t.Context()) })
				settle(time.Second)
				began := time.Now()
				tried.call(p)
				err := <-paused
				require.Zero(t, time.Since(began))
				require.True(t, errors.Is(err, tried.want) || tried.want == nil && err == nil, "%v", err)
				p.Stop()
			})
		})
	}
}

func TestAResumeEndsTheDrainOfAPauseWhileIll(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		var patient patient
		p := f.published(WithId(7), WithDrain(time.Minute), WithHealthCheck(patient.check, HealthPolicy{Failures: 1}))
		patient.ill.Store(true)
		patient.checked(1)
		paused := later(func() error { return p.PauseContext(t.Context()) })
		settle(time.Second)
		began := time.Now()
		require.NoError(t, p.ResumeContext(t.Context()))
		require.ErrorIs(t, <-paused, ErrSuperseded)
		require.Zero(t, time.Since(began))
		go p.Stop()
		settle(2 * time.Minute)
	})
}

func TestWhatCallersMayHaveFoundIsDrainedAlsoWhereNobodyHeardThatItWasPut(t *testing.T) {
	const drain = 3 * time.Second
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.publisher(WithId(7), WithBackgroundStart(), WithDrain(drain))
		f.meets(troubles{"put": {after: errReset}}.of)
		require.NoError(t, p.KeepAlive())
		settle(time.Minute)
		require.True(t, f.at(fakeKey).Exists())
		began := time.Now()
		require.NoError(t, p.StopContext(t.Context()))
		require.Equal(t, drain, time.Since(began))
	})
	inBubble(t, func(t *testing.T, f *fakeEtcd) { // but not for ever after
		p := f.publisher(WithId(7), WithDrain(drain))
		f.meets(troubles{"put": {after: errReset}}.of)
		require.Error(t, p.KeepAlive())
		settle(time.Hour)
		f.heal()
		began := time.Now()
		p.Pause()
		require.Zero(t, time.Since(began))
		p.Stop()
	})
}

func TestRunThatIsStoppedReturnsWhenTheKeyIsGone(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		life, end := context.WithCancel(t.Context())
		p := f.publisher(WithId(7), WithContext(life), WithDrain(3*time.Second))
		f.meets(troubles{"put": {delay: 100 * time.Millisecond, after: errReset}, "revoke": {delay: time.Second}}.of)
		ran := later(func() error { return p.Run(t.Context()) })
		settle(150 * time.Millisecond)
		require.True(t, f.at(fakeKey).Exists())
		end()
		require.ErrorIs(t, <-ran, ErrStopped)
		require.Equal(t, StateStopped, p.Status().State)
		require.False(t, f.at(fakeKey).Exists())
	})
}
