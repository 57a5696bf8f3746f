// Package backoff has the pauses between tries.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	// least is the first pause.
	least = 50 * time.Millisecond
	// Most bounds a pause. It keeps the way back below a second where nothing tells that etcd is well again: a permission
	// that was given back, an alarm that was disarmed. While etcd cannot be reached at all, a try waits for the connection,
	// so that a short pause costs etcd nothing.
	Most = 600 * time.Millisecond
)

// A Backoff is the pause between tries: doubled each time, up to Most, and jittered. It is not safe for concurrent use.
type Backoff struct {
	next time.Duration
}

// New returns a Backoff that begins with the shortest pause.
func New() *Backoff {
	return &Backoff{next: least}
}

// Reset begins anew with the shortest pause.
func (b *Backoff) Reset() { b.next = least }

// Wait pauses, and returns false if ctx is done first.
func (b *Backoff) Wait(ctx context.Context) bool {
	return Pause(ctx, b.Take())
}

// Take returns the pause that is due now, and makes the next one longer.
func (b *Backoff) Take() time.Duration {
	d := Jitter(b.next)
	b.next = min(2*b.next, Most)
	return d
}

// Pause waits for d, and returns false if ctx is done first.
func Pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Jitter returns a random duration between three quarters of d and d.
func Jitter(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/4+1)) //nolint:gosec // spreads load, guards nothing
}
