package discov

import (
	"context"
	"errors"
	"fmt"
)

// The answers to a KeepAlive, and what follows from them.

func (l *ledger) answerLocked(s *start, err error) {
	if !s.answered.isSet() {
		s.err = err
		s.answered.set()
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
	l.cut = nil
	switch over := !s.answered.isSet() && s.bound.Err() != nil; {
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
	case errors.Is(err, context.Cause(s.bound)): // its words tell more
		return err
	default:
		return fmt.Errorf("%w: %w", why, err)
	}
}

// fail answers a KeepAlive with why there is no registration: it may be called again. left is what could not be withdrawn,
// which goes on then.
func (l *ledger) fail(s *start, why error, left *WithdrawError) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running = false
	l.endHealthLocked()
	l.clearLeaseLocked()
	if left != nil {
		came := newLatch()
		l.clearing, l.nextCame = true, &came
		l.withdrawn, l.status.Until = false, left.Until
	}
	if l.wish.isStopped() {
		why = fmt.Errorf("%w: %w", l.refused("keep alive", ErrStopped), why)
	} else {
		l.enterLocked(StateIdle, why)
	}
	switch {
	case left != nil && (l.wish.isPaused() || l.wish.isStopped()):
		l.enterLocked(StateWithdrawing, nil)
	case l.wish.isStopped():
		l.finishStopLocked()
	case l.wish.isPaused():
		l.enterLocked(StatePaused, nil)
		l.noteErrorLocked(why)
	}
	if left != nil {
		why = fmt.Errorf("%w; %w", why, left)
	}
	l.answerLocked(s, why)
}

// stillLeft notes why what a KeepAlive has left is not withdrawn yet, and tells where that was asked for since.
func (l *ledger) stillLeft(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.status.State == StateWithdrawing {
		l.enterLocked(StateWithdrawing, why)
	}
}

// cleared notes that nothing is left, unless there is another KeepAlive, which it returns. Otherwise it reports whether
// Stop waits for the end.
func (l *ledger) cleared() (next *start, stopped bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clearing = false
	if next = l.next; next != nil {
		l.next = nil
		return next, false
	}
	if l.wish.isStopped() {
		return nil, true
	}
	l.clearLeaseLocked()
	switch {
	case l.status.State != StateWithdrawing:
	case l.wish.isPaused():
		l.enterLocked(StatePaused, nil)
	default: // a Resume came, and a KeepAlive that has not begun
		l.enterLocked(StateIdle, nil)
	}
	return nil, false
}
