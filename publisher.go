// Package discov keeps a service's registration in etcd true.
//
// A [Publisher] puts a key with a value into etcd, under a lease of its own, and keeps it there: it renews the lease,
// watches the key, and repairs what was lost, through restarts, wipes, partitions and stalls of etcd, until it is stopped.
// The diagram at [Publisher] shows its states.
//
//	pub := discov.NewPublisher([]string{"127.0.0.1:2379"}, "user.rpc", "10.0.0.7:8080")
//	if err := pub.KeepAlive(); err != nil {
//		return err
//	}
//	defer pub.Stop()
//
// Names, signatures and the layout in etcd are those of the publisher in go-zero's core/discov, so that code written for it
// only has to change its import.
package discov

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
)

// Publisher keeps a key with a value in etcd. Its methods may be called from any number of goroutines, in any order. None but
// Run blocks for longer than its bound: the deadline of its context, or the timeout (5 s by default) if it has none.
// Without a deadline, the wait of [WithDrain] comes on top of that for Stop and Pause.
//
//	     ┌───────────────── idle ──────────────────────┐
//	     │ KeepAlive         ▲ KeepAlive failed        │ Pause, Stop
//	     ▼                   │                         │
//	registering ─────────────┘                         │
//	 │   ▲   ▲ lease or key lost,                      │
//	 │   │   │ etcd out of reach                       │
//	 │   │   └────────── published ◄──────┐            │
//	 │   │ gone,             ▲ │          │ free       │
//	 │   │ out of reach      │ │ another's│ again      │
//	 │   └────────────────── │ └──────► conflict       │
//	 │ key is put            │            ▲            │
//	 ├───────────────────────┘            │            │
//	 ├────────────────────────────────────┘            │
//	 │ Pause or Stop, from any of the three            │
//	 ▼                                                 ▼
//	withdrawing ── gone, or given up after a TTL ──► paused, unhealthy, stopped
//	 │                                                 │
//	 └─ Resume ─► registering ◄───────── Resume ───────┘
//
// All transitions:
//
//	idle        → registering, withdrawing, paused, unhealthy, stopped
//	registering → published, conflict, withdrawing, idle
//	published   → registering, conflict, withdrawing
//	conflict    → registering, published, withdrawing
//	withdrawing → paused, unhealthy, stopped, registering, idle
//	paused      → registering, unhealthy, idle, stopped
//	unhealthy   → registering, paused, idle, stopped
//
// Unhealthy is like paused, but it is the check of [WithHealthCheck] that withdraws the key, and publishes it again.
//
// From idle, Pause and Stop go through withdrawing if a KeepAlive that failed has left something behind; a Resume before
// that is gone returns to idle.
type Publisher struct {
	made sync.Once // by NewPublisher, or by the first call on a zero Publisher
	starter

	// unfollow ends the tie to WithContext's context.
	unfollow func() bool
}

// NewPublisher returns a Publisher that publishes value at <key>/<lease ID>, or at <key>/<id> with [WithId]. The endpoints
// are those of one etcd cluster, as host:port or as URLs. Bad input is reported by KeepAlive.
func NewPublisher(endpoints []string, key, value string, opts ...PubOption) *Publisher {
	p := new(Publisher)
	p.made.Do(func() { p.make(endpoints, key, value, opts) })
	return p
}

// ensureMade makes of a zero Publisher one with bad input, on which no call panics.
func (p *Publisher) ensureMade() {
	p.made.Do(func() {
		p.make(nil, "", "", []PubOption{func(p *Publisher) {
			p.opts.reject(ErrOptions, "this is a zero Publisher: NewPublisher did not make it")
		}})
	})
}

func (p *Publisher) make(endpoints []string, key, value string, opts []PubOption) {
	p.endpoints, p.opts = slices.Clone(endpoints), defaultOptions()
	for i, opt := range opts {
		if opt == nil {
			p.opts.reject(ErrOptions, "PubOption %d of %d is nil", i+1, len(opts))
			continue
		}
		opt(p)
	}
	p.ledger = newLedger(key, p.opts.knownKey(key), value, newTeller(p.opts.observers, p.opts.logger))
	if p.opts.drain > 0 {
		p.drain = &drain{d: p.opts.drain}
	}
	if p.opts.health != nil {
		p.checks = make(chan struct{}, 1)
	}
	p.connect = p.share
	p.unfollow = func() bool { return true }
	if life := p.opts.life; life != nil && life.Err() != nil {
		p.beginStop()
	} else if life != nil {
		p.mu.Lock() // life may end right now
		p.unfollow = context.AfterFunc(life, p.beginStop)
		p.mu.Unlock()
	}
}

// validate returns all that is wrong with what the user gave, joined.
func (p *Publisher) validate() error {
	return p.opts.validate(p.endpoints, p.prefix, p.Status().Value)
}

// KeepAlive registers, and returns once the key is in etcd. From then on the key is kept there in the background, until
// Stop. While paused, KeepAlive returns nil, and Resume registers. If the key cannot be registered within the timeout,
// KeepAlive returns an error, leaves nothing behind, and may be called again. If etcd did not confirm in time that nothing
// is left, the error also wraps a *WithdrawError, and the withdrawal is retried in the background. Bad input is reported
// before anything is dialled.
func (p *Publisher) KeepAlive() error {
	return p.KeepAliveContext(context.Background())
}

// KeepAliveContext is KeepAlive bounded by ctx, which bounds the call, not the life of the registration: see [WithContext]
// for that. If ctx is cancelled before the key is in etcd, the call undoes what it has begun, for which it may take up to
// 75 ms more, and its error wraps ctx.Err() and context.Cause(ctx).
func (p *Publisher) KeepAliveContext(ctx context.Context) error {
	p.ensureMade()
	if err := p.validate(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return p.refused("keep alive", causeOf(ctx))
	}
	bound, cancel := p.bound(ctx)
	defer cancel()
	if err := p.claim(); err != nil {
		return err
	}
	health := p.checkHealth(bound)
	first := newStart(bound)
	p.start(first, health)
	err := p.awaitAnswer(first)
	if err != nil && p.opts.target.Client == nil {
		return fmt.Errorf("%w (endpoints %s)", err, strings.Join(p.endpoints, ", "))
	}
	return err
}

// Pause withdraws the key, and returns when it is gone or when the timeout has passed. The key stays withdrawn until
// Resume.
func (p *Publisher) Pause() {
	_ = p.PauseContext(context.Background()) // Status, the log and the observer tell
}

// PauseContext is Pause bounded by ctx. It returns a *WithdrawError if etcd has not confirmed in time that the key is gone;
// the withdrawal then goes on in the background. Use a fresh context: if ctx is done already, the call returns at once,
// while the key may still be there.
func (p *Publisher) PauseContext(ctx context.Context) error {
	whole := ctx
	ctx, cancel := p.bound(ctx)
	defer cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wish.isStopped() {
		return p.refused("pause", ErrStopped)
	}
	if !p.wish.isPaused() {
		p.wish.setPaused()
		p.cutLocked()
		p.wakeLocked()
	}
	switch {
	case !p.withdrawn && !p.running: // a KeepAlive that failed has left something
		p.enterLocked(StateWithdrawing, nil)
	case !p.running, p.status.State == StateUnhealthy:
		p.enterLocked(StatePaused, nil)
	case p.withdrawn && p.status.State == StateRegistering: // connecting
		p.enterLocked(StateWithdrawing, nil)
		p.enterLocked(StatePaused, nil)
	}
	isPaused := func() (bool, error) {
		switch {
		case !p.wish.paused:
			return true, p.refused("pause", ErrSuperseded)
		case p.withdrawn && p.status.State != StateWithdrawing:
			return true, nil
		default:
			return false, p.withdrawErrorLocked(ctx)
		}
	}
	if err := p.awaitLocked(ctx, "pause", isPaused); err != nil {
		return err
	}
	p.drainLocked(whole, func() bool { return !p.wish.isPaused() })
	if !p.wish.paused {
		return p.refused("pause", ErrSuperseded)
	}
	return nil
}

// Resume registers again after Pause, and takes the key over if another instance holds it. It returns when the key is in
// etcd or when the timeout has passed; the registration is then retried in the background.
func (p *Publisher) Resume() {
	_ = p.ResumeContext(context.Background()) // Status, the log and the observer tell
}

// ResumeContext is Resume bounded by ctx. An error means that the key was not in etcd in time. While the health check fails,
// it returns nil although the key is not in etcd.
func (p *Publisher) ResumeContext(ctx context.Context) error {
	ctx, cancel := p.bound(ctx)
	defer cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wish.isStopped() {
		return p.refused("resume", ErrStopped)
	}
	if p.wish.isPaused() {
		p.wish.clearPaused()
		p.wakeLocked()
	}
	if !p.running {
		p.enterLocked(StateIdle, nil)
		return nil
	}
	if p.wish.isWithheld() && p.status.State == StatePaused {
		p.restLocked(nil)
	}
	if p.status.State == StateConflict {
		p.wish.setTakeover()
	}
	return p.awaitLocked(ctx, "resume", func() (bool, error) {
		return p.isPublishedLocked("resume", 0)
	})
}

// Update replaces the value, under the same key and lease, and returns once the new one is in etcd. The latest value wins,
// also if it was given during an outage. Before KeepAlive, while paused and while the health check fails, Update keeps the
// value for later and returns nil. A value equal to the latest is not written again.
//
// An error means that the value was not in etcd in time. It is retried in the background, but for these: ErrConflict means
// that another instance holds the key; a value that is too large for etcd leaves the one before in place; after ErrStopped
// and ErrValue nothing is changed.
func (p *Publisher) Update(ctx context.Context, value string) error {
	ctx, cancel := p.bound(ctx)
	defer cancel()
	if value == "" {
		return p.refused("update", fmt.Errorf("%w: it is empty", ErrValue))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wish.isStopped() {
		return p.refused("update", ErrStopped)
	}
	p.wish.setValue(value)
	p.warnOfValueLocked()
	mine := p.wish.updates
	return p.awaitLocked(ctx, "update", func() (bool, error) {
		if p.wish.isWithheld() || !p.running {
			return true, nil
		}
		return p.isPublishedLocked("update", mine)
	})
}

// Stop withdraws the key and releases everything. It returns when that is done, or when the timeout has passed. A stopped
// Publisher cannot be started again.
func (p *Publisher) Stop() {
	_ = p.StopContext(context.Background()) // Status, the log and the observer tell
}

// StopContext is Stop bounded by ctx. It returns a *WithdrawError if etcd has not confirmed in time that the key is gone;
// the withdrawal then goes on in the background for up to one TTL. Use a fresh context: if ctx is done already, as the one
// that told the process to end, the call returns at once, while the key may still be there. Further calls wait for the same
// end.
func (p *Publisher) StopContext(ctx context.Context) error {
	whole := ctx
	ctx, cancel := p.bound(ctx)
	defer cancel()
	p.beginStop()
	p.mu.Lock()
	defer p.mu.Unlock()
	isStopped := func() (bool, error) {
		switch {
		case p.status.State == StateStopped:
			return true, p.outcome
		case p.withdrawn: // the key is gone, but not all is released yet
			return false, nil
		default:
			return false, p.withdrawErrorLocked(ctx)
		}
	}
	if err := p.awaitLocked(ctx, "stop", isStopped); err != nil {
		return err
	}
	p.drainLocked(whole, func() bool { return false })
	return nil
}

func (p *Publisher) beginStop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wish.isStopped() {
		return
	}
	p.unfollow()
	p.wish.setStopped()
	p.cutLocked()
	p.wakeLocked()
	switch {
	case p.running:
	case p.clearing:
		p.enterLocked(StateWithdrawing, nil)
	default:
		p.finishStopLocked()
	}
}

// Status returns a snapshot of the state. It does not block, and is cheap enough for a readiness probe.
func (p *Publisher) Status() Status {
	p.ensureMade()
	return p.snapshot()
}

// Key returns the key as it was given to NewPublisher: without the ID or the lease ID with which Status.Key ends.
func (p *Publisher) Key() string {
	p.ensureMade()
	return p.prefix
}

// String returns the key and the state, for logs.
func (p *Publisher) String() string {
	s := p.Status()
	return cmp.Or(s.Key, p.prefix) + " " + s.State.String()
}

// Format implements [fmt.Formatter]: all verbs write String, so that no secret is ever printed.
func (p *Publisher) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, p.String()) }

// Stats returns the counters. Like Status, it does not block.
func (p *Publisher) Stats() Stats {
	p.ensureMade()
	return p.stats()
}

// bound is what a call begins with: it gives ctx the timeout where it has no deadline.
func (p *Publisher) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	p.ensureMade()
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, p.opts.timeout)
}
