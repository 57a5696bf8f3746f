package discov

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/discov-go/discov/internal/etcd"
)

// ledger is what the calls on a Publisher and its goroutine share, under one lock, and where calls wait.
type ledger struct {
	prefix string // the key as the user gave it; nobody writes it
	teller *teller

	mu sync.Mutex // guards all below

	wish    wish
	status  Status        // all but the value, which is the wish's
	changed chan struct{} // closed and replaced when anything that a call waits for has changed

	running bool          // whether there is a goroutine
	done    chan struct{} // closed when nothing is to come after Stop
	outcome error         // what could not be withdrawn: of Stop, written before done is closed, or of a KeepAlive that failed
	left    []formerLease // that a KeepAlive that failed could not revoke

	taken     uint64 // the updates when the goroutine took the value last
	published uint64 // the updates when etcd held the latest value last
	rejected  uint64 // the updates when etcd refused a value for its size last
	withdrawn bool   // whether no lease of ours can be left in etcd

	family family          // of all lease IDs; the goroutine's, but kept here from one to the next
	held   *etcd.Keepalive // the lease of now, nil where there is none
}

// start is a call of KeepAlive, which the goroutine answers once. The ledger's mu guards the answer.
type start struct {
	bound    context.Context // of the first registration and, where that fails, of its clean-up
	answered bool
	err      error
}

func newLedger(prefix, value string, t *teller) *ledger {
	return &ledger{
		prefix:    prefix,
		teller:    t,
		wish:      newWish(value),
		status:    Status{State: StateIdle, Since: time.Now()},
		changed:   make(chan struct{}),
		done:      make(chan struct{}),
		withdrawn: true,
		family:    newFamily(),
	}
}

// What follows is for the calls.

func (l *ledger) refused(call string, err error) error {
	return fmt.Errorf("discov: %s %s: %w", call, l.prefix, err)
}

// causeOf is why ctx is done: what its owner has said of it, and what the context itself says.
func causeOf(ctx context.Context) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, ctx.Err()) {
		return cause
	}
	return fmt.Errorf("%w: %w", cause, ctx.Err())
}

// awaitLocked waits until settled is done, and returns its error. When ctx ends first, the error is ctx's, with the one
// that settled had last.
func (l *ledger) awaitLocked(ctx context.Context, call string, settled func() (bool, error)) error {
	for {
		over := ctx.Err() != nil
		done, err := settled()
		if done {
			return err
		}
		if over {
			return l.unsettledLocked(ctx, call, err)
		}
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		l.mu.Lock()
	}
}

func (l *ledger) unsettledLocked(ctx context.Context, call string, err error) error {
	var withdraw *WithdrawError
	if errors.As(err, &withdraw) {
		return err
	}
	late := fmt.Errorf("discov: %s %s: not done, it is %s: %w", call, l.nameLocked(), l.status.State, causeOf(ctx))
	if err == nil {
		return late
	}
	return fmt.Errorf("%w: %w", late, err)
}

// isPublishedLocked reports whether etcd holds a value at least as new as the update, or an error for that it will not.
func (l *ledger) isPublishedLocked(call string, update uint64) (bool, error) {
	switch {
	case l.wish.isStopped():
		return true, l.refused(call, ErrStopped)
	case !l.running:
		return true, l.refused(call, errors.Join(errNotStarted, l.status.Err))
	case l.wish.isPaused():
		return true, l.refused(call, ErrSuperseded)
	case l.wish.takeover:
		return false, l.status.Err
	case l.status.State == StateConflict:
		return true, l.refused(call, ErrConflict)
	case update > l.published && update <= l.rejected:
		return true, l.status.Err
	case l.status.State == StatePublished && l.published >= update:
		return true, nil
	default:
		return false, l.status.Err
	}
}

// leftLocked is what a KeepAlive that failed could not withdraw, until it is gone by itself.
func (l *ledger) leftLocked() error {
	var left *WithdrawError
	if errors.As(l.outcome, &left) && time.Now().Before(left.Until) {
		return left
	}
	return nil
}

// nameLocked is the full key, or what is known of it.
func (l *ledger) nameLocked() string { return cmp.Or(l.status.Key, l.prefix) }

func (l *ledger) withdrawErrorLocked(ctx context.Context) error {
	cause := context.DeadlineExceeded // about to be
	if ctx.Err() != nil {
		cause = causeOf(ctx)
	}
	if l.status.Err != nil {
		cause = fmt.Errorf("%w: %w", cause, l.status.Err)
	}
	until := l.status.Until
	if l.held != nil {
		until = time.Now().Add(l.held.TTL) // the goroutine has not heard yet: a renewal may be under way
	}
	return newWithdrawError(l.nameLocked(), until, cause)
}

// snapshot is the Status of now.
func (l *ledger) snapshot() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.status
	s.Value = l.wish.value
	if l.held != nil {
		s.Until = l.held.Until()
	}
	return s
}

// What follows is for both.

// undrawn hears of a change of state that the diagram lacks, which is a bug: tests fail on it.
var undrawn = func(from, to State) {}

// enterLocked notes a change of state, or a failure within one, and tells. A change that the diagram lacks takes place all
// the same, so that the Publisher goes on; the log has it as an error.
func (l *ledger) enterLocked(to State, err error) {
	from := l.status.State
	if onTheWay := to == StateRegistering || to == StateWithdrawing; err != nil || !onTheWay {
		l.status.Err = err
	}
	if from != to {
		l.status.State, l.status.Since = to, time.Now()
	}
	l.wakeLocked()
	if from != to || err != nil {
		l.teller.add(Event{Time: time.Now(), From: from, To: to, Key: l.status.Key, Lease: l.status.Lease, Err: err})
	}
	if from != to && !isDrawn(from, to) {
		undrawn(from, to)
	}
}

// noteErrorLocked notes a failure that is told later, or was.
func (l *ledger) noteErrorLocked(err error) {
	l.status.Err = err
	l.wakeLocked()
}

// wakeLocked wakes the calls that wait, since something has changed.
func (l *ledger) wakeLocked() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// What follows is for the goroutine.

func (l *ledger) enter(to State, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.enterLocked(to, err)
}

// heed returns what the user wants, and the latch that is set when that is something else. From then on etcd may have
// something of ours, if that is to publish.
func (l *ledger) heed() (want, latch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, latch := l.wish.now()
	if now == wantPublished {
		l.withdrawn = false
	}
	return now, latch
}

// beginTry notes that what is new is being dealt with, and returns whether the user has decided to publish since the key was
// put last.
func (l *ledger) beginTry() (takeover bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch l.status.State {
	case StateIdle, StatePaused, StateWithdrawing:
		l.enterLocked(StateRegistering, nil)
	}
	l.wish.clearNews()
	return l.wish.takeover
}

// latest takes the value that the user wants. What else is new is left for the next try.
func (l *ledger) latest() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taken = l.wish.updates
	return l.wish.value
}

// outdated reports whether the user wants another value than the one that was taken.
func (l *ledger) outdated() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.taken != l.wish.updates
}

// news is closed when there is a value, or a decision, that the goroutine has not taken.
func (l *ledger) news() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.wish.news.Done()
}

// publishedLocked notes that etcd holds the value that was taken, or refused it with an error and holds the one before.
func (l *ledger) publishedLocked(takeover bool, refusal error) {
	l.wish.takeover = l.wish.takeover && !takeover
	if refusal == nil {
		l.published = l.taken
	} else {
		l.rejected = l.taken
	}
	l.enterLocked(StatePublished, refusal)
}

// conflictLocked tells of a conflict once, when it begins, and when it changes.
func (l *ledger) conflictLocked(err error) {
	if l.status.State != StateConflict || l.status.Err == nil || l.status.Err.Error() != err.Error() {
		l.enterLocked(StateConflict, err)
	}
}

// lost notes that the key is not there, or not right.
func (l *ledger) lost(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.status.State == StatePublished {
		l.enterLocked(StateRegistering, why)
	}
}

// noteLease notes a lease that was granted or, where it is nil, that the one before was lost.
func (l *ledger) noteLease(held *etcd.Keepalive) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = held
	l.status.Lease, l.status.TTL, l.status.Until = 0, 0, time.Time{}
	if held != nil {
		l.status.Lease, l.status.TTL = held.ID, held.TTL
	}
}

// noteUnconnected notes that a start in the background has no client yet.
func (l *ledger) noteUnconnected(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.wish.isPaused() {
		l.enterLocked(StatePaused, err)
	} else {
		l.enterLocked(StateRegistering, err)
	}
}

// withdrawing notes that the key is to go, which it does by itself at the time that is given, and why it has not.
func (l *ledger) withdrawing(gone time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.withdrawn {
		return
	}
	if l.status.State == StateIdle {
		l.enterLocked(StateRegistering, nil) // which was about to begin
	}
	l.held, l.status.Until = nil, gone
	l.enterLocked(StateWithdrawing, err)
}

func (l *ledger) noteWithdrawn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clearLeaseLocked()
}

// clearLeaseLocked notes that no lease of ours can be left.
func (l *ledger) clearLeaseLocked() {
	l.withdrawn, l.held = true, nil
	l.status.Lease, l.status.TTL, l.status.Until = 0, 0, time.Time{}
}

// withdrawError is the error for a key that could not be withdrawn, and goes by itself at the time that is given.
func (l *ledger) withdrawError(gone time.Time, err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return newWithdrawError(l.nameLocked(), gone, err)
}

func (l *ledger) answerLocked(s *start, err error) {
	if !s.answered {
		s.answered, s.err = true, err
		l.wakeLocked()
	}
}

// promise answers a KeepAlive that does not wait for its registration.
func (l *ledger) promise(s *start) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answerLocked(s, nil)
}

// begun answers a KeepAlive whose registration has succeeded. It returns why it is to be undone instead: its error, or that
// the caller has given up.
func (l *ledger) begun(s *start, err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch over := !s.answered && s.bound.Err() != nil; {
	case over:
		return l.givenUpLocked(s, err)
	case err != nil:
		return err
	case l.wish.isStopped():
		l.answerLocked(s, l.refused("keep alive", ErrStopped))
	default:
		l.answerLocked(s, nil)
	}
	return nil
}

func (l *ledger) givenUpLocked(s *start, err error) error {
	why := l.refused("keep alive", causeOf(s.bound))
	switch {
	case err == nil && l.status.State == StatePublished:
		l.enterLocked(StateRegistering, nil) // fail tells why
		return why
	case err == nil:
		return why
	case errors.Is(err, context.Cause(s.bound)): // and says of what
		return err
	default:
		return fmt.Errorf("%w: %w", why, err)
	}
}

// leave notes the leases that could not be revoked, for the next KeepAlive to do it.
func (l *ledger) leave(these []formerLease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left = these
}

// finish ends the goroutine's part after Stop. It takes what could not be withdrawn.
func (l *ledger) finish(left error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running, l.outcome = false, left
	l.finishStopLocked()
}

// fail ends the goroutine's part where there is no first registration: KeepAlive may be called again. It takes why, and what
// could not be withdrawn.
func (l *ledger) fail(s *start, err, left error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running = false
	l.outcome = cmp.Or(left, l.leftLocked()) // of an earlier one
	switch {
	case l.wish.isStopped():
		l.finishStopLocked()
		err = fmt.Errorf("%w: %w", l.refused("keep alive", ErrStopped), err)
	default:
		l.idleLocked(err)
	}
	if left != nil {
		err = fmt.Errorf("%w; %w", err, left)
	}
	l.answerLocked(s, err)
}

func (l *ledger) idleLocked(err error) {
	l.clearLeaseLocked()
	l.withdrawn = l.outcome == nil
	l.enterLocked(StateIdle, err)
	if l.wish.isPaused() {
		l.enterLocked(StatePaused, nil)
		l.noteErrorLocked(err)
	}
}

func (l *ledger) finishStopLocked() {
	if l.status.State == StateRegistering || l.status.State == StatePublished {
		l.enterLocked(StateWithdrawing, nil)
	}
	l.enterLocked(StateStopped, l.outcome)
	close(l.done)
}
