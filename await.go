package discov

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The calls wait here. Each waits for the ledger to be as it wants it, under the ledger's lock but for the wait itself.

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
		changed := l.changed.heard()
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

// drainLocked waits until callers have noticed that the key is gone, unless ctx is done first, or it is over.
func (l *ledger) drainLocked(ctx context.Context, over func() bool) {
	if l.drain == nil || l.drain.gone.IsZero() {
		return
	}
	ctx, cancel := context.WithDeadline(ctx, l.drain.gone.Add(l.drain.d))
	defer cancel()
	_ = l.awaitLocked(ctx, "drain", func() (bool, error) { return over(), nil }) // its end is no error
}

// isPublishedLocked reports whether the wait for an update is over: etcd holds a value at least as new, or an error tells why
// it will not.
func (l *ledger) isPublishedLocked(call string, update uint64) (bool, error) {
	switch {
	case l.wish.isStopped():
		return true, l.refused(call, ErrStopped)
	case !l.running:
		return true, l.refused(call, errors.Join(errNotStarted, l.status.Err))
	case l.wish.isPaused():
		return true, l.refused(call, ErrSuperseded)
	case l.wish.isWithheld():
		return true, nil // until the health check succeeds
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

// awaitAnswer waits for the goroutine's answer. It comes in time for the caller's bound, but for a moment that a clean-up
// may take after a cancelled one, and a grant that is under way.
func (l *ledger) awaitAnswer(first *start) error {
	select {
	case <-first.answered.Done(): // and not each change of the ledger, of which a registration has two
	case <-first.bound.Done():
		grace := time.NewTimer(cleanUpAtLeast + cleanUpAtLeast/2)
		defer grace.Stop()
		select {
		case <-first.answered.Done():
		case <-grace.C:
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case first.answered.isSet():
		return first.err
	case l.withdrawn:
		return l.unsettledLocked(first.bound, "keep alive", l.status.Err)
	default:
		return fmt.Errorf("%w; %w", l.unsettledLocked(first.bound, "keep alive", nil), l.withdrawErrorLocked(first.bound))
	}
}

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
