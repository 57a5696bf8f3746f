package discov

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Status.

func TestStatusTellsEachState(t *testing.T) {
	t.Parallel()
	srv, path := quickPath(t)
	began := time.Now()
	p := newTestPublisher(t, []string{path.Endpoint()}, WithId(testID), WithTTL(5*time.Second), WithBackgroundStart())

	s := p.Status()
	require.Equal(t, StateIdle, s.State)
	require.WithinRange(t, s.Since, began, time.Now())
	require.Equal(t, testValue, s.Value)
	require.Zero(t, s.Lease)
	require.Zero(t, s.Until)
	require.Equal(t, testFullKey, s.Key, "it is known before")
	require.NoError(t, s.Err)

	path.Refuse()
	require.NoError(t, p.KeepAlive())
	etcdtest.RequireSoon(t, eventually, func() bool { return p.Status().Err != nil })
	s = p.Status()
	require.Equal(t, StateRegistering, s.State)
	require.Equal(t, testFullKey, s.Key)
	require.Zero(t, s.Until, "no lease was ever granted")
	require.Zero(t, p.Stats().Registrations)

	path.Accept()
	awaitState(t, p, StatePublished)
	registered := time.Now()
	s = p.Status()
	require.Equal(t, testFullKey, s.Key)
	require.Equal(t, requireValue(t, srv, testFullKey, testValue).Lease, int64(s.Lease))
	require.Equal(t, 5*time.Second, s.TTL)
	require.WithinRange(t, s.Until, registered.Add(3*time.Second), registered.Add(5*time.Second))
	require.Equal(t, 1, p.Stats().Registrations)
	require.NoError(t, s.Err)

	another := putByAnother(t, srv, testFullKey, "another's")
	awaitState(t, p, StateConflict)
	s = p.Status()
	require.ErrorIs(t, s.Err, ErrConflict)
	require.NotEqual(t, another, s.Lease)

	path.Swallow()
	require.Error(t, p.PauseContext(deadline(t, 100*time.Millisecond)))
	awaitState(t, p, StateWithdrawing)
	s = p.Status()
	require.WithinRange(t, s.Until, registered, time.Now().Add(5*time.Second))

	path.Heal()
	awaitState(t, p, StatePaused)
	s = p.Status()
	require.Zero(t, s.Lease)
	require.Zero(t, s.TTL)
	require.Zero(t, s.Until)
	require.NoError(t, s.Err)

	p.Stop()
	s = p.Status()
	require.Equal(t, StateStopped, s.State)
	require.WithinRange(t, s.Since, registered, time.Now())
	require.NoError(t, s.Err)
}

func TestStatusTellsUntilWhenTheLeaseLasts(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints(), WithTTL(time.Second))
	first := p.Status().Until
	etcdtest.RequireSoon(t, eventually, func() bool { return p.Status().Until.After(first) }, "each renewal moves it")

	srv.Stop()
	until := p.Status().Until
	etcdtest.RequireSoon(t, eventually, func() bool { return p.Status().State == StateRegistering }, "the outage is told")
	require.Equal(t, until, p.Status().Until, "nothing was renewed")
	require.Error(t, p.Status().Err)
}

func TestStatesReadAsInTheDiagram(t *testing.T) {
	t.Parallel()
	require.Equal(t, "idle registering published conflict withdrawing paused unhealthy stopped", fmt.Sprintf("%v %v %v %v %v %v %v %v",
		StateIdle, StateRegistering, StatePublished, StateConflict, StateWithdrawing, StatePaused, StateUnhealthy, StateStopped))
	require.Equal(t, "State(99)", State(99).String())
	require.Equal(t, "State(-1)", State(-1).String())
}

// The diagram.

// walk is what a scenario of the diagram may use.
type walk struct {
	srv  *etcdtest.Server
	path *etcdtest.Path
	p    *Publisher
	ctx  context.Context
}

func TestEveryTransitionOfTheDiagramHappens(t *testing.T) {
	t.Parallel()
	var losesAnswers atomic.Bool
	loseAnswers := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if losesAnswers.Load() && method == pb.Lease_LeaseRevoke_FullMethodName {
			return status.Error(codes.Unavailable, "lost")
		}
		err := invoke(ctx, method, req, reply, cc, opts...)
		if losesAnswers.Load() && method == pb.KV_Put_FullMethodName {
			return status.Error(codes.Unavailable, "lost")
		}
		return err
	}
	check := func(healthy *atomic.Bool) PubOption {
		return WithHealthCheck(func(context.Context) error {
			if healthy.Load() {
				return nil
			}
			return errors.New("ill")
		}, HealthPolicy{Interval: 10 * time.Millisecond, Failures: 1, Successes: 1})
	}
	var cured, changes atomic.Bool
	changes.Store(true)
	scenarios := []struct {
		name   string
		opts   []PubOption
		take   func(*testing.T, walk)
		states []State // entered, Stop included
	}{
		{
			name:   "KeepAlive and Stop",
			take:   func(t *testing.T, w walk) { require.NoError(t, w.p.KeepAlive()) },
			states: []State{StateRegistering, StatePublished, StateWithdrawing, StateStopped},
		},
		{
			name:   "Stop alone",
			take:   func(*testing.T, walk) {},
			states: []State{StateStopped},
		},
		{
			name: "Pause and Resume before KeepAlive",
			take: func(_ *testing.T, w walk) {
				w.p.Pause()
				w.p.Resume()
				w.p.Pause()
			},
			states: []State{StatePaused, StateIdle, StatePaused, StateStopped},
		},
		{
			name: "a KeepAlive that fails",
			opts: []PubOption{WithTimeout(200 * time.Millisecond)},
			take: func(t *testing.T, w walk) {
				w.path.Refuse()
				require.Error(t, w.p.KeepAlive())
				requireIdle(t, w.p)
			},
			states: []State{StateRegistering, StateIdle, StateStopped},
		},
		{
			name: "a KeepAlive that fails and leaves its key, Pause, Resume, Pause, KeepAlive",
			opts: []PubOption{WithTimeout(2 * time.Second), Dialling(grpc.WithChainUnaryInterceptor(loseAnswers))},
			take: func(t *testing.T, w walk) {
				losesAnswers.Store(true)
				require.Error(t, w.p.KeepAlive())
				requireIdle(t, w.p)
				w.p.Pause()
				w.p.Resume()
				w.p.Pause()
				require.NoError(t, w.p.KeepAliveContext(deadline(t, eventually)))
				losesAnswers.Store(false)
				require.NoError(t, w.p.PauseContext(deadline(t, eventually)))
				requireAbsent(t, w.srv, testFullKey)
			},
			states: []State{StateRegistering, StateIdle, StateWithdrawing, StateIdle, StateWithdrawing, StatePaused, StateStopped},
		},
		{
			name: "Pause, KeepAlive, Resume, Pause",
			take: func(t *testing.T, w walk) {
				w.p.Pause()
				require.NoError(t, w.p.KeepAlive())
				w.p.Resume()
				w.p.Pause()
			},
			states: []State{StatePaused, StateRegistering, StatePublished, StateWithdrawing, StatePaused, StateStopped},
		},
		{
			name: "the key is deleted",
			take: func(t *testing.T, w walk) {
				require.NoError(t, w.p.KeepAlive())
				deleteByHand(t, w.srv, testFullKey)
				etcdtest.RequireSoon(t, eventually, func() bool { return w.p.Stats().Registrations == 2 })
				awaitState(t, w.p, StatePublished)
			},
			states: []State{StateRegistering, StatePublished, StateRegistering, StatePublished, StateWithdrawing, StateStopped},
		},
		{
			name: "the key is another's, and free again",
			take: func(t *testing.T, w walk) {
				require.NoError(t, w.p.KeepAlive())
				another := putByAnother(t, w.srv, testFullKey, "another's")
				awaitState(t, w.p, StateConflict)
				revokeByHand(t, w.srv, another)
				awaitState(t, w.p, StatePublished)
			},
		},
		{
			name: "the key is another's after a break, and Resume takes it",
			take: func(t *testing.T, w walk) {
				require.NoError(t, w.p.KeepAlive())
				etcdtest.RequireSoon(t, eventually, func() bool { return w.srv.Watchers() == 1 })
				w.path.Refuse()
				w.path.Reset()
				putByAnother(t, w.srv, testFullKey, "another's")
				w.path.Accept()
				awaitState(t, w.p, StateConflict)
				require.NoError(t, w.p.ResumeContext(w.ctx))
			},
			states: []State{StateRegistering, StatePublished, StateConflict, StatePublished, StateWithdrawing, StateStopped},
		},
		{
			name: "etcd is lost in a conflict",
			opts: []PubOption{WithTTL(time.Second), WithTimeout(400 * time.Millisecond)},
			take: func(t *testing.T, w walk) {
				require.NoError(t, w.p.KeepAliveContext(deadline(t, eventually)))
				putByAnother(t, w.srv, testFullKey, "another's")
				awaitState(t, w.p, StateConflict)
				w.path.Refuse()
				w.path.Reset()
				awaitState(t, w.p, StateRegistering)
				w.path.Accept()
				awaitState(t, w.p, StateConflict)
			},
		},
		{
			name: "Pause in a conflict",
			take: func(t *testing.T, w walk) {
				require.NoError(t, w.p.KeepAlive())
				putByAnother(t, w.srv, testFullKey, "another's")
				awaitState(t, w.p, StateConflict)
				w.p.Pause()
			},
		},
		{
			name: "the first health check fails, and a later one succeeds",
			opts: []PubOption{check(&cured)},
			take: func(t *testing.T, w walk) {
				require.NoError(t, w.p.KeepAlive())
				require.Equal(t, StateUnhealthy, w.p.Status().State)
				requireAbsent(t, w.srv, testFullKey)
				cured.Store(true)
				awaitState(t, w.p, StatePublished)
			},
			states: []State{StateUnhealthy, StateRegistering, StatePublished, StateWithdrawing, StateStopped},
		},
		{
			name: "a health check fails, Pause, Resume, Stop",
			opts: []PubOption{check(&changes)},
			take: func(t *testing.T, w walk) {
				require.NoError(t, w.p.KeepAlive())
				changes.Store(false)
				awaitState(t, w.p, StateUnhealthy)
				w.p.Pause()
				w.p.Resume()
			},
			states: []State{
				StateRegistering, StatePublished, StateWithdrawing, StateUnhealthy, StatePaused, StateUnhealthy, StateStopped,
			},
		},
		{
			name: "the first health check fails, and so does KeepAlive",
			opts: []PubOption{check(new(atomic.Bool)), WithClientConfig(func(c *clientv3.Config) { c.Endpoints = nil })},
			take: func(t *testing.T, w walk) {
				require.Error(t, w.p.KeepAlive())
				require.Equal(t, StateIdle, w.p.Status().State)
			},
			states: []State{StateUnhealthy, StateIdle, StateStopped},
		},
		{
			name: "Pause and Resume in an outage",
			opts: []PubOption{WithTimeout(400 * time.Millisecond)},
			take: func(t *testing.T, w walk) {
				require.NoError(t, w.p.KeepAliveContext(deadline(t, eventually)))
				w.path.Refuse()
				w.path.Reset()
				w.p.Pause()
				awaitState(t, w.p, StateWithdrawing)
				w.p.Resume()
				awaitState(t, w.p, StateRegistering)
				w.p.Pause()
				awaitState(t, w.p, StateWithdrawing)
				w.p.Resume()
				awaitState(t, w.p, StateRegistering)
				w.path.Accept()
				awaitState(t, w.p, StatePublished)
			},
			states: []State{
				StateRegistering, StatePublished, StateWithdrawing, StateRegistering, StateWithdrawing, StateRegistering,
				StatePublished, StateWithdrawing, StateStopped,
			},
		},
	}
	var mu sync.Mutex
	happened := map[State]map[State]bool{}
	t.Run("by", func(t *testing.T) {
		for _, scenario := range scenarios {
			t.Run(scenario.name, func(t *testing.T) {
				t.Parallel()
				srv, path := quickPath(t)
				p, events := newRecordedPublisher(t, []string{path.Endpoint()}, append([]PubOption{WithId(testID)}, scenario.opts...)...)
				scenario.take(t, walk{srv, path, p, context.Background()})
				p.Stop()
				awaitState(t, p, StateStopped)
				etcdtest.RequireSoon(t, eventually, func() bool {
					states := events.states()
					return len(states) > 0 && states[len(states)-1] == StateStopped
				})
				if scenario.states != nil {
					require.Equal(t, scenario.states, events.states())
				}
				mu.Lock()
				defer mu.Unlock()
				for _, e := range events.changes() {
					if happened[e.From] == nil {
						happened[e.From] = map[State]bool{}
					}
					happened[e.From][e.To] = true
				}
			})
		}
	})
	for from, tos := range transitions {
		for _, to := range tos {
			assert.Truef(t, happened[from][to], "%v -> %v is in the diagram and never happened", from, to)
		}
	}
}
