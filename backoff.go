package discov

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	backoffLeast = 50 * time.Millisecond
	// backoffMost keeps the way back below a second where nothing tells that etcd is well again: a permission that was
	// given back, an alarm that was disarmed. While etcd cannot be reached at all, a try waits for the connection, so
	// that a short pause costs etcd nothing.
	backoffMost = 600 * time.Millisecond
)

// backoff is the pause between tries: doubled each time, up to a bound, and jittered.
type backoff struct {
	next time.Duration
}

func newBackoff() *backoff {
	return &backoff{next: backoffLeast}
}

func (b *backoff) reset() { b.next = backoffLeast }

// wait pauses, and says no when ctx is done first.
func (b *backoff) wait(ctx context.Context) bool {
	return pause(ctx, b.take())
}

// take is how long to pause now.
func (b *backoff) take() time.Duration {
	d := jitter(b.next)
	b.next = min(2*b.next, backoffMost)
	return d
}

// pause waits for d, and says no when ctx is done first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// jitter is between three quarters of d and d.
func jitter(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/4+1)) //nolint:gosec // spreads load, guards nothing
}
