// Package discov keeps a service's registration in etcd true.
//
// A [Publisher] keeps one fact true in etcd, "this instance serves here": a key with a value, under a lease of its own.
// It registers, renews, watches, and repairs, through restarts, wipes, partitions and stalls of etcd, until it is told to
// stop; what it does at each moment is in the diagram at [Publisher].
//
//	pub := discov.NewPublisher([]string{"127.0.0.1:2379"}, "user.rpc", "10.0.0.7:8080")
//	if err := pub.KeepAlive(); err != nil {
//		return err
//	}
//	defer pub.Stop()
//
// Names, signatures and the layout in etcd are those of the publisher in go-zero's core/discov: code written for it
// changes one import.
package discov

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// latch is a fact as a channel, closed while it holds: its Done. As a context it ends the calls to etcd that it makes
// pointless.
type latch struct {
	context.Context
	set context.CancelFunc
}

func newLatch() latch {
	ctx, cancel := context.WithCancel(context.Background())
	return latch{ctx, cancel}
}

// A Publisher keeps a key with a value in etcd. Its calls may be made from any number of goroutines, in any order; none
// outlasts its bound, which is the deadline of its context, or the timeout (5 s) where it has none.
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
//	withdrawing ── gone, or given up after a TTL ──► paused, stopped
//	 │                                                 │
//	 └─ Resume ─► registering ◄───────── Resume ───────┘
//
// All the ways there are:
//
//	idle        → registering, paused, stopped
//	registering → published, conflict, withdrawing, idle
//	published   → registering, conflict, withdrawing
//	conflict    → registering, published, withdrawing
//	withdrawing → paused, stopped, registering
//	paused      → registering, withdrawing, idle, stopped
//
// One goroutine per started Publisher makes etcd equal to what the user wants: published, paused or stopped, and the
// value. What the user wants is a level, not a message: no call waits for that goroutine to hear it.
type Publisher struct {
	endpoints []string
	prefix    string
	opts      options

	// unfollow ends the tie to WithContext's context.
	unfollow func() bool
	// teller hands events to the log and the observer.
	teller *teller
	// connect gives the goroutine its etcd, and how to release it.
	connect func() (store, func(), error)

	mu sync.Mutex // guards all below

	value    string
	updates  uint64        // counts changes of value
	updated  chan struct{} // closed when value has changed since the goroutine took it
	paused   bool
	stopping bool
	takeover bool // somebody decided to publish, and the key was not put since

	// The goroutine hears the user by these three. pause is done while the key is not to be published, resume while it is
	// not to stay withdrawn, stop for good.
	pause, resume, stop latch

	running   bool          // whether there is a goroutine
	done      chan struct{} // closed when nothing is to come after Stop
	outcome   error         // what could not be withdrawn: of Stop, written before done is closed, or of a KeepAlive that failed
	left      []lease       // that a KeepAlive that failed could not revoke
	taken     uint64        // updates when the goroutine took the value last
	published uint64        // updates at the last time that etcd held the latest value
	rejected  uint64        // updates when etcd last refused a value for its size
	withdrawn bool          // whether no lease of ours can be left in etcd
	status    Status
	changed   chan struct{} // closed and replaced when anything that a call waits for has changed
}

// NewPublisher returns a Publisher of value at key, which becomes <key>/<lease ID>, or <key>/<id> with WithId. endpoints
// are those of one etcd cluster, as host:port or as URLs. Bad input is reported by KeepAlive.
func NewPublisher(endpoints []string, key, value string, opts ...PubOption) *Publisher {
	p := &Publisher{
		endpoints: slices.Clone(endpoints),
		prefix:    key,
		value:     value,
		opts:      defaultOptions(),
		updated:   make(chan struct{}),
		pause:     newLatch(),
		resume:    newLatch(),
		stop:      newLatch(),
		done:      make(chan struct{}),
		changed:   make(chan struct{}),
		withdrawn: true,
	}
	p.resume.set()
	for _, opt := range opts {
		opt(p)
	}
	p.connect = p.share
	p.teller = newTeller(p.opts.observer, p.opts.logger)
	p.status = Status{State: StateIdle, Since: time.Now(), Value: value}
	p.unfollow = func() bool { return true }
	if life := p.opts.life; life != nil && life.Err() != nil {
		p.beginStop()
	} else if life != nil {
		p.mu.Lock() // life may end right now
		p.unfollow = context.AfterFunc(life, p.beginStop)
		p.mu.Unlock()
	}
	return p
}

// validate returns all that is wrong with what the user gave, joined.
func (p *Publisher) validate() error {
	return p.opts.validate(p.endpoints, p.prefix, p.Status().Value)
}

// KeepAlive registers, and returns when the key is in etcd; from then on it is kept there in the background, until Stop.
// While paused it returns nil, and Resume registers. When the first registration fails within the timeout, KeepAlive
// returns why, leaves nothing behind, and may be called again; where etcd did not confirm in time that nothing is left, the
// error wraps a *WithdrawError as well. Bad input is reported whole, before anything is dialled.
func (p *Publisher) KeepAlive() error {
	return p.KeepAliveContext(context.Background())
}

// KeepAliveContext is KeepAlive with the bound from ctx. ctx bounds the call, never the life of the registration.
func (p *Publisher) KeepAliveContext(ctx context.Context) error {
	if err := p.validate(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return p.refused("keep alive", context.Cause(ctx))
	}
	ctx, cancel := p.bound(ctx)
	defer cancel()
	first := newOutcome()
	if err := p.start(ctx, first); err != nil {
		return err
	}
	err := p.awaitStart(ctx, first)
	if err != nil && p.opts.client == nil {
		return fmt.Errorf("%w (endpoints %s)", err, strings.Join(p.endpoints, ", "))
	}
	return err
}

// awaitStart waits for the goroutine, which keeps the bound unless the user's tuning of the client is slow.
func (p *Publisher) awaitStart(ctx context.Context, first *outcome) error {
	if !p.opts.backgroundStart {
		select {
		case err := <-first.err:
			return err
		case <-ctx.Done():
		}
	}
	late := time.NewTimer(cleanUpAtLeast + cleanUpAtLeast/2)
	defer late.Stop()
	select {
	case err := <-first.err:
		return err
	case <-late.C:
	}
	switch {
	case !first.take():
		return <-first.err
	case p.opts.backgroundStart:
		return nil
	default:
		return p.refused("keep alive", context.Cause(ctx))
	}
}

// start starts the goroutine.
func (p *Publisher) start(ctx context.Context, first *outcome) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.opts.life != nil && p.opts.life.Err() != nil:
		return p.refused("keep alive", fmt.Errorf("%w: %w", ErrStopped, context.Cause(p.opts.life)))
	case p.stopping:
		return p.refused("keep alive", ErrStopped)
	case p.running:
		return p.refused("keep alive", ErrStarted)
	}
	p.running, p.takeover = true, true
	p.status.Err = nil
	go p.run(ctx, first)
	return nil
}

func (p *Publisher) refused(call string, err error) error {
	return fmt.Errorf("discov: %s %s: %w", call, p.prefix, err)
}

// Pause withdraws the key, and returns when it is gone or the timeout is up. It stays withdrawn until Resume.
func (p *Publisher) Pause() {
	_ = p.PauseContext(context.Background()) // Status, the log and the observer tell
}

// PauseContext is Pause with the bound from ctx. It returns a *WithdrawError when etcd has not confirmed in time that the
// key is gone.
func (p *Publisher) PauseContext(ctx context.Context) error {
	ctx, cancel := p.bound(ctx)
	defer cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		return p.refused("pause", ErrStopped)
	}
	if !p.paused {
		p.paused, p.takeover = true, false
		p.resume = newLatch()
		p.pause.set()
		p.wakeLocked()
	}
	if p.status.State == StateRegistering && p.withdrawn { // connecting, in the background
		p.enterLocked(StateWithdrawing, nil)
		p.enterLocked(StatePaused, nil)
	}
	if !p.running {
		p.enterLocked(StatePaused, nil)
	}
	return p.awaitLocked(ctx, "pause", func() (bool, error) {
		switch {
		case !p.paused && !p.stopping:
			return true, p.refused("pause", ErrSuperseded)
		case !p.running:
			return true, p.leftLocked()
		case p.withdrawn && p.status.State != StateWithdrawing:
			return true, nil
		default:
			return false, p.withdrawErrorLocked(ctx)
		}
	})
}

// Resume registers again after a Pause, over whatever holds the key, and returns when it is in etcd or the timeout is
// up; from then on it is tried in the background.
func (p *Publisher) Resume() {
	_ = p.ResumeContext(context.Background()) // Status, the log and the observer tell
}

// ResumeContext is Resume with the bound from ctx. An error means that the key was not in etcd in time.
func (p *Publisher) ResumeContext(ctx context.Context) error {
	ctx, cancel := p.bound(ctx)
	defer cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		return p.refused("resume", ErrStopped)
	}
	if p.paused {
		p.paused, p.takeover = false, true
		p.pause = newLatch()
		p.resume.set()
		p.touchLocked()
		p.wakeLocked()
	}
	if !p.running {
		p.enterLocked(StateIdle, nil)
		return nil
	}
	if p.status.State == StateConflict {
		p.takeover = true
		p.touchLocked()
	}
	return p.awaitLocked(ctx, "resume", func() (bool, error) {
		return p.isPublishedLocked("resume", 0)
	})
}

// Update publishes another value under the same key and lease, and returns when it is in etcd. The latest value wins,
// also when it was set in an outage; before KeepAlive and while paused it is kept for later. A value equal to the latest
// writes nothing. An error means that it was not in etcd in time: it is tried again in the background, unless it is too
// large for etcd, when the one before stays; or, for ErrConflict, that another instance holds the key. After ErrStopped
// and ErrValue nothing is tried.
func (p *Publisher) Update(ctx context.Context, value string) error {
	if value == "" {
		return fmt.Errorf("discov: update %s: %w: it is empty", p.prefix, ErrValue)
	}
	ctx, cancel := p.bound(ctx)
	defer cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		return p.refused("update", ErrStopped)
	}
	if value != p.value {
		p.value, p.status.Value = value, value
		p.updates++
		p.touchLocked()
	}
	mine := p.updates
	return p.awaitLocked(ctx, "update", func() (bool, error) {
		if p.paused && !p.stopping || !p.running {
			return true, nil
		}
		return p.isPublishedLocked("update", mine)
	})
}

// isPublishedLocked says whether etcd holds a value at least as new as the update, or that it will not.
func (p *Publisher) isPublishedLocked(call string, update uint64) (bool, error) {
	switch {
	case p.stopping:
		return true, p.refused(call, ErrStopped)
	case !p.running:
		return true, p.refused(call, errors.Join(errNotStarted, p.status.Err))
	case p.paused:
		return true, p.refused(call, ErrSuperseded)
	case p.takeover:
		return false, p.status.Err
	case p.status.State == StateConflict:
		return true, p.refused(call, ErrConflict)
	case update > p.published && update <= p.rejected:
		return true, p.status.Err
	case p.status.State == StatePublished && p.published >= update:
		return true, nil
	default:
		return false, p.status.Err
	}
}

// Stop withdraws the key and releases everything, for good. It returns when that is done, or the timeout is up.
func (p *Publisher) Stop() {
	_ = p.StopContext(context.Background()) // Status, the log and the observer tell
}

// StopContext is Stop with the bound from ctx. It returns a *WithdrawError when etcd has not confirmed in time that the
// key is gone. Later calls wait for the same end.
func (p *Publisher) StopContext(ctx context.Context) error {
	ctx, cancel := p.bound(ctx)
	defer cancel()
	p.beginStop()
	select {
	case <-p.done:
	case <-ctx.Done():
	}
	select {
	case <-p.done: // also where both came at once
		return p.outcome
	default:
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.withdrawn { // the key is gone, but not all is released yet
			return p.unsettledLocked(ctx, "stop", nil)
		}
		return p.withdrawErrorLocked(ctx)
	}
}

func (p *Publisher) beginStop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		return
	}
	p.stopping = true
	p.unfollow()
	p.stop.set()
	p.pause.set()
	p.resume.set()
	p.wakeLocked()
	if !p.running {
		p.outcome = p.leftLocked()
		p.enterLocked(StateStopped, p.outcome)
		close(p.done)
	}
}

// leftLocked is what a KeepAlive that failed could not withdraw, until it is gone by itself.
func (p *Publisher) leftLocked() error {
	var left *WithdrawError
	if errors.As(p.outcome, &left) && time.Now().Before(left.Until) {
		return left
	}
	return nil
}

// Status returns a snapshot. It is cheap.
func (p *Publisher) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// bound gives ctx the timeout where it has no deadline.
func (p *Publisher) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, p.opts.timeout)
}

// awaitLocked waits until settled is done, and returns its error. When ctx ends first, the error is ctx's, with the one
// that settled had last.
func (p *Publisher) awaitLocked(ctx context.Context, call string, settled func() (bool, error)) error {
	for {
		over := ctx.Err() != nil
		done, err := settled()
		if done {
			return err
		}
		if over {
			return p.unsettledLocked(ctx, call, err)
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		p.mu.Lock()
	}
}

func (p *Publisher) unsettledLocked(ctx context.Context, call string, err error) error {
	var withdraw *WithdrawError
	if errors.As(err, &withdraw) {
		return err
	}
	late := fmt.Errorf("discov: %s %s: not done, it is %s: %w", call, p.nameLocked(), p.status.State, context.Cause(ctx))
	if err == nil {
		return late
	}
	return fmt.Errorf("%w: %w", late, err)
}

// nameLocked is the full key, or what is known of it.
func (p *Publisher) nameLocked() string { return cmp.Or(p.status.Key, p.prefix) }

func (p *Publisher) withdrawErrorLocked(ctx context.Context) error {
	cause := context.Cause(ctx)
	if cause == nil {
		cause = context.DeadlineExceeded // about to be
	}
	if p.status.Err != nil {
		cause = fmt.Errorf("%w: %w", cause, p.status.Err)
	}
	until := p.status.Until
	if p.status.State != StateWithdrawing && !until.IsZero() {
		until = time.Now().Add(p.status.TTL) // the goroutine has not heard yet: a renewal may be under way
	}
	return &WithdrawError{Key: p.nameLocked(), Until: until, Err: cause}
}

// wakeLocked tells those that wait that something has changed.
func (p *Publisher) wakeLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// touchLocked tells the goroutine that there is a value, or a decision, that it has not seen.
func (p *Publisher) touchLocked() {
	select {
	case <-p.updated:
	default:
		close(p.updated)
	}
}

// enterLocked notes a change of state, or a failure within one, and tells the observer.
func (p *Publisher) enterLocked(to State, err error) {
	from := p.status.State
	if onTheWay := to == StateRegistering || to == StateWithdrawing; err != nil || !onTheWay {
		p.status.Err = err
	}
	if from != to {
		p.status.State, p.status.Since = to, time.Now()
	}
	p.wakeLocked()
	if from != to || err != nil {
		p.teller.add(Event{Time: time.Now(), From: from, To: to, Key: p.status.Key, Lease: p.status.Lease, Err: err})
	}
}

// noteLease is how the goroutine tells of each renewal.
func (p *Publisher) noteLease(held lease) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status.Lease, p.status.TTL, p.status.Until = held.id, held.ttl, held.until
}
