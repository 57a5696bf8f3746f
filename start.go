package discov

import (
	"context"
	"fmt"

	"github.com/discov-go/discov/internal/conn"
)

// share is the real connect: the use of a connection that is shared.
func (p *Publisher) share(bound, stop context.Context) (connected, error) {
	shared, err := connections.acquire(bound, stop, p.opts.target.To(p.endpoints))
	if err != nil {
		return connected{}, err
	}
	p.teller.share(shared.lines)
	if shared.target.ShowsPassword() && !p.teller.unheard {
		shared.warned.Do(func() {
			p.teller.warnAside("discov: the password goes to etcd in the clear: use TLS", "endpoints", shared.target.String())
		})
	}
	usual := conn.Bounds{
		Call:     p.opts.timeout / 2,
		Patience: min(p.opts.timeout/4, p.opts.ttl/8),
		// So that there is time left on another link, before the call and the lease end.
		MaxPatience: min(9*p.opts.timeout/20, p.opts.ttl/3),
	}
	first := usual
	first.Call = 0
	s := &session{shared: shared, first: shared.conn.Caller(first), usual: shared.conn.Caller(usual)}
	return connected{&s.first, &s.usual, s.release}, nil
}

// session is a Publisher's use of a connection.
type session struct {
	shared       *sharedConn
	first, usual conn.Caller
}

func (s *session) release() { connections.release(s.shared) }

// claim makes the call the one that starts the Publisher.
func (p *Publisher) claim() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.opts.life != nil && p.opts.life.Err() != nil:
		return p.refused("keep alive", fmt.Errorf("%w: %w", ErrStopped, context.Cause(p.opts.life)))
	case p.wish.isStopped():
		return p.refused("keep alive", ErrStopped)
	case p.running:
		return p.refused("keep alive", ErrStarted)
	}
	p.warnOfValueLocked()
	p.running = true
	p.wish.takeover = true
	p.status.Err = nil
	return nil
}

// checkHealth makes the first health check. It returns nil where there is none to make.
func (p *Publisher) checkHealth(bound context.Context) *health {
	if p.opts.health == nil {
		return nil
	}
	h := &health{ledger: p.ledger, check: p.opts.health.check, policy: p.opts.health.policy.withDefaults(), busy: p.checks}
	p.mu.Lock()
	h.life, p.endHealth = context.WithCancel(p.wish.stop)
	p.mu.Unlock()
	h.begin(bound)
	return h
}

// start starts the goroutine, and that of the health check.
func (p *Publisher) start(first *start, h *health) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wish.isStopped() {
		p.stoppedBeforeStartLocked(first)
		return
	}
	switch {
	case !p.wish.isWithheld():
		p.enterLocked(StateRegistering, nil)
	case p.wish.paused:
	case p.withdrawn:
		p.restLocked(nil)
	default: // a KeepAlive that failed has left something
		p.enterLocked(StateWithdrawing, nil)
	}
	if h != nil {
		go h.run()
	}
	if p.clearing {
		p.next = first
		p.nextCame.set()
		return
	}
	k := &keeper{ledger: p.ledger, opts: &p.opts, connect: p.connect}
	go k.run(first)
}

// stoppedBeforeStartLocked ends a KeepAlive that has claimed the Publisher, but started nothing before it was stopped.
func (p *Publisher) stoppedBeforeStartLocked(first *start) {
	p.running = false
	p.endHealthLocked()
	p.answerLocked(first, p.refused("keep alive", ErrStopped))
	switch {
	case p.status.State == StateStopped:
	case p.clearing:
		p.enterLocked(StateWithdrawing, nil)
	default:
		p.finishStopLocked()
	}
}
