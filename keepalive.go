package discov

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/etcd"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

const (
	// A first registration that fails leaves this share of its bound to the clean-up.
	cleanUpShare = 10
	// cleanUpAtLeast is what the clean-up gets when the caller has given up.
	cleanUpAtLeast = 50 * time.Millisecond
	// A key that is put in doubt quickDoubts times in a row, each within calm of the one before, is mended with pauses.
	quickDoubts = 10
	calm        = time.Second
)

// wish is what the user wants.
type wish int

const (
	wishPublished wish = iota
	wishPaused
	wishStopped
)

// share is the real connect: a session on the connection that is shared.
func (p *Publisher) share() (store, func(), error) {
	c, err := connections.acquire(newTarget(p.endpoints, p.opts))
	if err != nil {
		return nil, nil, err
	}
	p.teller.share(c.quota)
	s := &session{
		conn:        c,
		call:        p.opts.timeout / 2,
		patience:    min(p.opts.timeout/4, p.opts.ttl/8),
		maxPatience: p.opts.timeout / 4,
	}
	return s, func() { connections.release(c) }, nil
}

func (p *Publisher) newRegistration(on store) *registration {
	r := &registration{
		store:    on,
		latest:   p.latest,
		outdated: p.outdated,
		prefix:   p.prefix,
		suffixed: !p.opts.exactKey,
		id:       p.opts.id,
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	r.key = p.status.Key // of leases that are left
	r.leases = leases{store: on, asked: p.opts.ttl, former: p.left, onRenew: p.noteLease}
	p.withdrawn = len(p.left) == 0
	p.left, p.outcome = nil, nil
	return r
}

// outcome is that of a first registration. Whoever takes it first decides: the goroutine with a result, or KeepAlive,
// which has no time left.
type outcome struct {
	taken atomic.Bool
	err   chan error // room for one
}

func newOutcome() *outcome {
	return &outcome{err: make(chan error, 1)}
}

func (o *outcome) take() bool { return o.taken.CompareAndSwap(false, true) }

// run is the life of a started Publisher, on a goroutine of its own. first gets the outcome of the first registration
// within bound; with an error, or where KeepAlive has returned with one before, all is undone.
func (p *Publisher) run(bound context.Context, first *outcome) {
	on, release, err := p.connectFirst(first)
	if err != nil {
		p.finish(err, nil)
		first.err <- err
		return
	}
	r := p.newRegistration(on)
	err = p.begin(bound, r)
	if err == nil && (first.take() || p.opts.backgroundStart) {
		first.err <- p.stoppedEarly()
		left := p.keep(r)
		release()
		p.finish(nil, left)
		return
	}
	if err == nil {
		err = p.abandon(bound)
	}
	left := p.undo(bound, r)
	release()
	p.finish(err, left)
	if left != nil {
		err = fmt.Errorf("%w; %w", err, left)
	}
	first.err <- err
}

// connectFirst connects, and goes on trying where a start in the background has been promised already.
func (p *Publisher) connectFirst(first *outcome) (store, func(), error) {
	for retry := backoff.New(); ; {
		on, release, err := p.connect()
		if err == nil || first.take() || !p.opts.backgroundStart {
			return on, release, err
		}
		p.noteUnconnected(err)
		if !retry.Wait(p.stop) {
			return nil, nil, err
		}
	}
}

func (p *Publisher) noteUnconnected(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paused {
		p.enterLocked(StatePaused, err)
	} else {
		p.enterLocked(StateRegistering, err)
	}
}

// begin makes the first registration, unless the user wants something else meanwhile.
func (p *Publisher) begin(bound context.Context, r *registration) error {
	var told error
	end := cleanUpFrom(bound)
	for retry := backoff.New(); !p.opts.backgroundStart; {
		want, latch := p.wish()
		if want != wishPublished {
			return nil
		}
		ctx, cancel := p.attempt(latch, bound, end)
		err := moreTelling(told, p.reconcile(ctx, r))
		told = err
		again := err != nil && !etcd.IsFinal(err) && retry.Wait(ctx)
		cancel()
		if changed := latch.Err() != nil; err == nil || !again && !changed {
			return err
		}
	}
	return nil
}

// moreTelling is the error of the last try, or that of the one before where it names a failed handshake: gRPC tells of
// that only when nothing else comes in between.
func moreTelling(before, last error) error {
	if last != nil && before != nil && strings.Contains(before.Error(), "tls: ") && !strings.Contains(last.Error(), "tls: ") {
		return before
	}
	return last
}

// cleanUpFrom is when a first registration has to have succeeded, early enough before its bound to clean up.
func cleanUpFrom(bound context.Context) time.Time {
	deadline, _ := bound.Deadline()
	return deadline.Add(-time.Until(deadline) / cleanUpShare)
}

// attempt ends with the latch, when the caller gives up, and at the end.
func (p *Publisher) attempt(latch, bound context.Context, end time.Time) (context.Context, context.CancelFunc) {
	latch = context.WithValue(latch, wholeBound{}, true)
	ctx, cancel := context.WithDeadline(latch, end)
	stop := context.AfterFunc(bound, cancel)
	return ctx, func() { stop(); cancel() }
}

// abandon notes that a registration is to be undone because its caller had given up when it succeeded.
func (p *Publisher) abandon(bound context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status.State != StatePublished {
		return nil
	}
	err := p.refused("keep alive", context.Cause(bound))
	p.enterLocked(StateRegistering, err)
	return err
}

// undo withdraws what a first registration that failed may have left, as far as the bound allows.
func (p *Publisher) undo(bound context.Context, r *registration) error {
	deadline, _ := bound.Deadline()
	if least := time.Now().Add(cleanUpAtLeast); bound.Err() != nil || deadline.Before(least) {
		deadline = least
	}
	ctx, cancel := context.WithDeadline(context.WithoutCancel(bound), deadline)
	defer cancel()
	for retry := backoff.New(); ; {
		if err := r.withdraw(ctx); err == nil || etcd.IsFinal(err) || !retry.Wait(ctx) {
			return p.leave(r, err)
		}
	}
}

// leave notes the leases that could not be revoked, for the next KeepAlive to do it, and returns what is to be told.
func (p *Publisher) leave(r *registration, err error) error {
	if err == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = r.leases.former
	return r.withdrawError(err)
}

// keep makes etcd equal to what the user wants, until that is to stop. It returns what could not be withdrawn.
func (p *Publisher) keep(r *registration) error {
	for {
		switch want, latch := p.wish(); want {
		case wishPublished:
			p.publish(latch, r)
		case wishPaused:
			p.stayWithdrawn(latch, r)
		case wishStopped:
			return p.withdrawForGood(r)
		}
	}
}

// publish reconciles and holds in turn, until ctx is done.
func (p *Publisher) publish(ctx context.Context, r *registration) {
	retry, quick := backoff.New(), 0
	for ctx.Err() == nil {
		if !r.settled {
			if err := p.reconcile(ctx, r); err != nil {
				r.rest(ctx, retry, err)
				continue
			}
		}
		began := time.Now()
		doubt := p.hold(ctx, r)
		if errors.Is(doubt, errValueUpdated) {
			continue
		}
		if quick++; time.Since(began) > calm {
			quick = 0
			retry.Reset()
		}
		if quick > quickDoubts {
			retry.Wait(ctx)
		}
	}
}

// reconcile makes etcd hold the latest value, and tells.
func (p *Publisher) reconcile(ctx context.Context, r *registration) error {
	takeover := p.decision()
	err := r.reconcile(ctx, takeover)
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.isNamed() {
		p.status.Key = r.key
	}
	p.status.Registrations = r.puts
	switch {
	case err != nil && ctx.Err() != nil && !isTimeUp(ctx):
	case err != nil:
		p.enterLocked(StateRegistering, err)
	case r.conflict:
		p.conflictLocked(r)
	default:
		p.takeover = p.takeover && !takeover
		if r.refusal == nil {
			p.published = p.taken
		} else {
			p.rejected = p.taken
		}
		p.enterLocked(StatePublished, r.refusal)
	}
	return err
}

func isTimeUp(ctx context.Context) bool {
	return errors.Is(ctx.Err(), context.DeadlineExceeded)
}

// conflictLocked tells of a conflict once, when it begins.
func (p *Publisher) conflictLocked(r *registration) {
	if p.status.State != StateConflict {
		p.enterLocked(StateConflict, fmt.Errorf("discov: %s: %w, under lease %d", r.key, ErrConflict, r.seen.Lease))
	}
}

// decision says whether the user has decided to publish since the key was put last, and notes that what is new is being
// dealt with.
func (p *Publisher) decision() (takeover bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.enterRegisteringLocked()
	select {
	case <-p.updated:
		p.updated = make(chan struct{})
	default:
	}
	return p.takeover
}

// latest takes the value that the user wants. What else is new is left for the next decision.
func (p *Publisher) latest() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken = p.updates
	return p.value
}

// outdated says whether the user wants another value than the one that was taken.
func (p *Publisher) outdated() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken != p.updates
}

// enterRegisteringLocked leaves the states that are on neither side of a registration.
func (p *Publisher) enterRegisteringLocked() {
	switch p.status.State {
	case StateIdle, StatePaused, StateWithdrawing:
		p.enterLocked(StateRegistering, nil)
	}
}

// hold keeps the registration until there is a doubt, and tells of one that is a loss.
func (p *Publisher) hold(ctx context.Context, r *registration) (doubt error) {
	p.mu.Lock()
	updated := p.updated
	p.mu.Unlock()
	doubt = r.hold(ctx, updated)
	if ctx.Err() != nil {
		return doubt
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if isLoss(doubt) && p.status.State == StatePublished {
		p.enterLocked(StateRegistering, doubt)
	}
	return doubt
}

// isLoss says whether a doubt means that the key is not there, or not right. The rest may turn out well.
func isLoss(doubt error) bool {
	return errors.Is(doubt, errKeyGone) || errors.Is(doubt, errKeyChanged) || errors.Is(doubt, rpctypes.ErrLeaseNotFound)
}

// stayWithdrawn withdraws the key and keeps it so, until ctx is done.
func (p *Publisher) stayWithdrawn(ctx context.Context, r *registration) {
	if p.withdraw(ctx, r) != nil {
		return
	}
	p.enter(StatePaused, nil)
	r.guard(ctx)
}

// withdrawForGood withdraws for Stop, and gives up after one TTL: the lease has ended then, unless etcd was restarted.
func (p *Publisher) withdrawForGood(r *registration) error {
	ctx, cancel := context.WithTimeout(context.Background(), max(p.opts.ttl, p.Status().TTL))
	defer cancel()
	if err := p.withdraw(ctx, r); err != nil {
		return r.withdrawError(err)
	}
	return nil
}

// withdraw revokes the leases of ours, again and again until ctx is done.
func (p *Publisher) withdraw(ctx context.Context, r *registration) error {
	r.leases.discard()
	p.withdrawing(r, nil)
	for retry := backoff.New(); ; {
		err := r.withdraw(ctx)
		if err == nil {
			p.noteWithdrawn()
			return nil
		}
		if ctx.Err() == nil || isTimeUp(ctx) {
			p.withdrawing(r, err)
		}
		if !r.rest(ctx, retry, err) {
			return err
		}
	}
}

func (p *Publisher) withdrawing(r *registration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.withdrawn {
		return
	}
	if p.status.State == StateIdle {
		p.enterLocked(StateRegistering, nil) // which was about to begin
	}
	p.status.Until = r.leases.gone()
	p.enterLocked(StateWithdrawing, err)
}

func (p *Publisher) noteWithdrawn() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clearLeaseLocked()
}

// clearLeaseLocked notes that no lease of ours can be left.
func (p *Publisher) clearLeaseLocked() {
	p.withdrawn = true
	p.status.Lease, p.status.TTL, p.status.Until = 0, 0, time.Time{}
}

// wish returns what the user wants and the latch that is done when that is something else.
func (p *Publisher) wish() (wish, latch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.stopping:
		return wishStopped, p.stop
	case p.paused:
		return wishPaused, p.resume
	default:
		p.withdrawn = false
		return wishPublished, p.pause
	}
}

func (p *Publisher) enter(to State, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.enterLocked(to, err)
}

// stoppedEarly is KeepAlive's error when Stop came before it was done.
func (p *Publisher) stoppedEarly() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		return p.refused("keep alive", ErrStopped)
	}
	return nil
}

// finish ends the goroutine's part: after a first registration that failed, KeepAlive may be called again.
func (p *Publisher) finish(failed, left error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = false
	if left == nil {
		left = p.leftLocked() // by an earlier one
	}
	p.outcome = left
	if p.stopping {
		p.finishStopLocked()
		return
	}
	p.clearLeaseLocked()
	p.withdrawn = left == nil
	p.enterLocked(StateIdle, failed)
	if p.paused {
		p.enterLocked(StatePaused, failed)
	}
}

func (p *Publisher) finishStopLocked() {
	if p.status.State == StateRegistering || p.status.State == StatePublished {
		p.enterLocked(StateWithdrawing, nil)
	}
	p.enterLocked(StateStopped, p.outcome)
	close(p.done)
}
