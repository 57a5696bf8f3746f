package discov

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/discov-go/discov/internal/backoff"
)

// errHangs ends a check that takes longer than its timeout.
var errHangs = errors.New("it takes longer than its timeout")

// health is the check of one Publisher, from a KeepAlive to its end.
type health struct {
	*ledger
	check  func(context.Context) error
	policy HealthPolicy
	busy   chan struct{}   // holds a token while the check is under way: one at a time, whatever KeepAlive it is for
	life   context.Context // done when the KeepAlive is not in effect any more

	failures, successes int // in a row
}

// begin makes the first check, for which a KeepAlive has half of its time, and after which the key is withheld if it has
// failed.
func (h *health) begin(bound context.Context) {
	deadline, _ := bound.Deadline()
	ctx, cancel := context.WithTimeoutCause(bound, time.Until(deadline)/2, errHangs)
	defer cancel()
	defer context.AfterFunc(h.life, cancel)()
	if err := h.ask(ctx); err != nil {
		h.failures = h.policy.Failures
		h.fell(err)
	} else {
		h.rose()
	}
}

// run checks, until the KeepAlive is not in effect any more.
func (h *health) run() {
	for backoff.Pause(h.life, backoff.Jitter(h.policy.Interval)) {
		h.note(h.ask(h.life))
	}
}

// note counts what a check has told.
func (h *health) note(err error) {
	if err != nil {
		h.failures, h.successes = h.failures+1, 0
		if h.failures >= h.policy.Failures {
			h.fell(err)
		}
		return
	}
	h.failures, h.successes = 0, h.successes+1
	if h.successes >= h.policy.Successes {
		h.rose()
	}
}

// ask calls the check, which is the user's code: on a goroutine of its own, since it may hang. One that hangs is not called
// again before it has returned.
func (h *health) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, h.policy.Timeout, errHangs)
	defer cancel()
	select {
	case h.busy <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	answer := make(chan error, 1)
	go h.call(ctx, answer)
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (h *health) call(ctx context.Context, answer chan<- error) {
	err := errors.New("it ended its goroutine") // as testing's FailNow does
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("it panicked: %v", p)
		}
		<-h.busy
		answer <- err
	}()
	err = h.check(ctx)
}

// fell withholds the key.
func (h *health) fell(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.life.Err() != nil {
		return
	}
	again := h.wish.illness != nil
	h.wish.setIll(fmt.Errorf("discov: %s: %w: %w", h.nameLocked(), errUnhealthy, why))
	switch {
	case again && h.status.State == StateUnhealthy:
		h.noteErrorLocked(h.wish.illness)
	case again:
	default:
		h.counters.lose(CauseUnhealthy)
		h.cutLocked()
		h.wakeLocked()
	}
	if h.withdrawn && h.status.State == StateRegistering { // connecting
		h.enterLocked(StateWithdrawing, nil)
		h.restLocked(nil)
	}
}

// rose ends that.
func (h *health) rose() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.life.Err() == nil && h.wish.illness != nil {
		h.wish.clearIll()
		h.wakeLocked()
	}
}
