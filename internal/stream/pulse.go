package stream

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/discov-go/discov/internal/etcd"
)

// A Pulse knows how quickly etcd answers over a link of late, and whether at all. The zero Pulse is ready to use. It is
// safe for concurrent use.
type Pulse struct {
	mu        sync.Mutex
	roundTrip time.Duration // of late
	answered  time.Time     // when etcd last answered anything
	overtaken time.Time     // when the last request was made that etcd has answered
	sound     chan struct{} // closed when a silence ends, nil where there is none
}

// NoteAnswer notes that etcd has answered something, which ends a silence.
func (p *Pulse) NoteAnswer() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answered = time.Now()
	p.endSilenceLocked()
}

// NoteRoundTrip notes how long an answer took to a request made at began. A longer round trip counts at once, and half of
// it is forgotten with each shorter one: after a stall of seconds, a request that died is not made again for as long
// (because: a stall of 3 s slowed that for half a minute).
func (p *Pulse) NoteRoundTrip(began, ended time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.roundTrip = max(ended.Sub(began), p.roundTrip/2)
	if p.overtaken.Before(began) {
		p.overtaken = began
	}
	p.answered = ended
	p.endSilenceLocked()
}

// Expect notes how long a round trip is likely to take at least, before there was any.
func (p *Pulse) Expect(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.roundTrip = max(p.roundTrip, d)
}

// RoundTrip returns how long an answer takes of late.
func (p *Pulse) RoundTrip() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.roundTrip
}

// Late returns after which time an answer is late.
func (p *Pulse) Late() time.Duration {
	return 3 * p.RoundTrip() / 2
}

// IsSilentSince reports whether etcd has answered nothing since.
func (p *Pulse) IsSilentSince(since time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.isSilentSinceLocked(since)
}

func (p *Pulse) isSilentSinceLocked(since time.Time) bool { return p.answered.Before(since) }

// IsQueue reports whether etcd goes on answering, but nothing that was made later than a request by half of d: then the
// request waits for its turn, and to make it again would only make the queue longer (because: an etcd with a slow disk was
// asked ever more by requests that were each made again after a second). It goes on where it has answered within d.
func (p *Pulse) IsQueue(began time.Time, d time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	isInOrder := p.overtaken.Before(began.Add(d / 2))
	return isInOrder && !p.isSilentSinceLocked(began) && !p.isSilentSinceLocked(time.Now().Add(-d))
}

// BeginSilence notes that the link is connected and in doubt, and that nobody has an answer: what is sent now would only be
// given up again.
func (p *Pulse) BeginSilence() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sound == nil {
		p.sound = make(chan struct{})
	}
}

// EndSilence notes that the silence, if there is one, is over.
func (p *Pulse) EndSilence() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endSilenceLocked()
}

func (p *Pulse) endSilenceLocked() {
	if p.sound != nil {
		close(p.sound)
		p.sound = nil
	}
}

// Silence returns a channel that is closed when the silence of now is over, and nil where there is none.
func (p *Pulse) Silence() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sound
}

// AwaitSound waits until there is no silence.
func (p *Pulse) AwaitSound(ctx context.Context) error {
	sound := p.Silence()
	if sound == nil {
		return nil
	}
	select {
	case <-sound:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ctx.Err(), etcd.ErrSilent)
	}
}
