package discov

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/discov-go/discov/internal/backoff"
)

// HealthPolicy is how often a health check is called, and what follows from it. Fields that are zero have their defaults.
type HealthPolicy struct {
	// Interval is the time between two checks, which is jittered. Defaults to 5 s.
	Interval time.Duration
	// Timeout is how long a check may take. Defaults to 1 s.
	Timeout time.Duration
	// Failures is how many checks have to fail in a row until the key is withdrawn. Defaults to 3.
	Failures int
	// Successes is how many checks have to succeed in a row until it is published again. Defaults to 2.
	Successes int
}

func (h HealthPolicy) withDefaults() HealthPolicy {
	return HealthPolicy{
		Interval:  cmp.Or(h.Interval, 5*time.Second),
		Timeout:   cmp.Or(h.Timeout, time.Second),
		Failures:  cmp.Or(h.Failures, 3),
		Successes: cmp.Or(h.Successes, 2),
	}
}

// wrong returns what is wrong with the policy.
func (h HealthPolicy) wrong() (errs []error) {
	for _, field := range []struct {
		name  string
		value int64
		text  any
	}{
		{"Interval", int64(h.Interval), h.Interval},
		{"Timeout", int64(h.Timeout), h.Timeout},
		{"Failures", int64(h.Failures), h.Failures},
		{"Successes", int64(h.Successes), h.Successes},
	} {
		if field.value < 0 {
			errs = append(errs, fmt.Errorf("%s is %v: want zero or more", field.name, field.text))
		}
	}
	return errs
}

var (
	errUnhealthy = errors.New("the health check failed")
	errHangs     = errors.New("it takes longer than its timeout")
)

// healthCheck is what the user has given.
type healthCheck struct {
	check  func(context.Context) error
	policy HealthPolicy
}

// health is the check of one Publisher, from a KeepAlive to its end.
type health struct {
	*ledger
	check  func(context.Context) error
	policy HealthPolicy

	hanging             <-chan error // of a check that has not returned in time; nil where there is none
	failures, successes int          // in a row
}

func newHealth(l *ledger, of *healthCheck) *health {
	return &health{ledger: l, check: of.check, policy: of.policy.withDefaults()}
}

// begin makes the first check, after which the key is withheld if it has failed.
func (h *health) begin(ctx context.Context) {
	err := h.ask(ctx)
	switch {
	case ctx.Err() != nil: // it tells nothing
	case err != nil:
		h.failures = h.policy.Failures
		h.fell(err)
	default:
		h.rose()
	}
}

// run checks, until ctx is done.
func (h *health) run(ctx context.Context) {
	for backoff.Pause(ctx, backoff.Jitter(h.policy.Interval)) {
		err := h.ask(ctx)
		if ctx.Err() != nil {
			return
		}
		h.note(err)
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
// again.
func (h *health) ask(ctx context.Context) error {
	if h.hanging != nil {
		select {
		case <-h.hanging:
			h.hanging = nil // what it says is of long ago
		default:
			return errHangs
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, h.policy.Timeout, errHangs)
	defer cancel()
	answer := make(chan error, 1)
	go h.call(ctx, answer)
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		h.hanging = answer
		return context.Cause(ctx)
	}
}

func (h *health) call(ctx context.Context, answer chan<- error) {
	err := errors.New("it ended its goroutine") // as testing's FailNow does
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("it panicked: %v", p)
		}
		answer <- err
	}()
	err = h.check(ctx)
}

// fell withholds the key.
func (h *health) fell(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.running || h.wish.isStopped() {
		return
	}
	again := h.wish.illness != nil
	h.wish.setIll(fmt.Errorf("discov: %s: %w: %w", h.nameLocked(), errUnhealthy, why))
	if again {
		return
	}
	if h.status.State == StatePublished {
		h.counters.lose(CauseUnhealthy)
	}
	if h.withdrawn && h.status.State == StateRegistering { // connecting
		h.enterLocked(StateWithdrawing, nil)
		h.restLocked(nil)
	}
	h.cutLocked()
	h.wakeLocked()
}

// rose ends that.
func (h *health) rose() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.wish.illness != nil {
		h.wish.clearIll()
		h.wakeLocked()
	}
}
