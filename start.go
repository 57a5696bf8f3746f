package discov

import (
	"context"
	"fmt"

	"github.com/discov-go/discov/internal/conn"
)

// starter is what a Publisher has to start: the ledger, the options, and the way to etcd.
type starter struct {
	*ledger

	endpoints []string
	opts      options
	checks    chan struct{}                                        // of health checks that are under way, one at most
	connect   func(bound, stop context.Context) (connected, error) // for the goroutine
}

// share is the real connect: the use of a connection that is shared.
func (s *starter) share(bound, stop context.Context) (connected, error) {
	shared, err := connections.acquire(bound, stop, s.opts.target.To(s.endpoints))
	if err != nil {
		return connected{}, err
	}
	s.teller.share(shared.lines)
	if shared.target.ShowsPassword() && !s.teller.unheard {
		shared.warned.Do(func() {
			s.teller.warnAside("discov: the password goes to etcd in the clear: use TLS", "endpoints", shared.target.String())
		})
	}
	usual := conn.Bounds{
		Call:     s.opts.timeout / 2,
		Patience: min(s.opts.timeout/4, s.opts.ttl/8),
		// So that there is time left on another link, before the call and the lease end.
		MaxPatience: min(9*s.opts.timeout/20, s.opts.ttl/3),
	}
	first := usual
	first.Call = 0
	c := &callers{shared: shared, first: shared.conn.Caller(first), usual: shared.conn.Caller(usual)}
	return connected{&c.first, &c.usual, c.release}, nil
}

// callers are a Publisher's use of a connection.
type callers struct {
	shared       *sharedConn
	first, usual conn.Caller
}

func (c *callers) release() { connections.release(c.shared) }

// claim makes the call the one that starts the Publisher.
func (s *starter) claim() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.opts.life != nil && s.opts.life.Err() != nil:
		return s.refused("keep alive", fmt.Errorf("%w: %w", ErrStopped, context.Cause(s.opts.life)))
	case s.wish.isStopped():
		return s.refused("keep alive", ErrStopped)
	case s.running:
		return s.refused("keep alive", ErrStarted)
	}
	s.warnOfValueLocked()
	s.running = true
	s.wish.takeover = true
	s.status.Err = nil
	return nil
}

// checkHealth makes the first health check. It returns nil where there is none to make.
func (s *starter) checkHealth(bound context.Context) *health {
	if s.opts.health == nil {
		return nil
	}
	h := &health{ledger: s.ledger, check: s.opts.health.check, policy: s.opts.health.policy.withDefaults(), busy: s.checks}
	s.mu.Lock()
	h.life, s.endHealth = context.WithCancel(s.wish.stop)
	s.mu.Unlock()
	h.begin(bound)
	return h
}

// start starts the goroutine, and that of the health check.
func (s *starter) start(first *start, h *health) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wish.isStopped() {
		s.stoppedBeforeStartLocked(first)
		return
	}
	switch {
	case !s.wish.isWithheld():
		s.enterLocked(StateRegistering, nil)
	case s.wish.paused:
	case s.withdrawn:
		s.restLocked(nil)
	default: // a KeepAlive that failed has left something
		s.enterLocked(StateWithdrawing, nil)
	}
	if h != nil {
		go h.run()
	}
	if s.clearing {
		s.next = first
		s.nextCame.set()
		return
	}
	k := &keeper{ledger: s.ledger, opts: &s.opts, connect: s.connect}
	go k.run(first)
}

// stoppedBeforeStartLocked ends a KeepAlive that has claimed the Publisher, but started nothing before it was stopped.
func (s *starter) stoppedBeforeStartLocked(first *start) {
	s.running = false
	s.endHealthLocked()
	s.answerLocked(first, s.refused("keep alive", ErrStopped))
	switch {
	case s.status.State == StateStopped:
	case s.clearing:
		s.enterLocked(StateWithdrawing, nil)
	default:
		s.finishStopLocked()
	}
}
