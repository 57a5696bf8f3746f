package conn

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/discov-go/discov/internal/etcd"
)

// beats keep the leases of a connection alive. All leases of one TTL are renewed together, on a beat of a third of it: a
// renewal in a packet of its own costs 36 times what one in a burst costs, on both sides. A lease that is granted between
// two beats joins at the next one, so that none waits for longer than a third of its TTL. When a beat falls is drawn by lot
// once for each connection, so that processes do not beat together, also after an outage that has ended for all at once.
type beats struct {
	links *links
	began time.Time
	phase float64

	mu  sync.Mutex
	all map[time.Duration]*beat // by TTL; each has at least one lease
}

func newBeats(on *links) *beats {
	return &beats{
		links: on,
		began: time.Now(),
		phase: rand.Float64(), //nolint:gosec // spreads load, guards nothing
		all:   map[time.Duration]*beat{},
	}
}

// beat is that of one TTL.
type beat struct {
	of  *beats
	ttl time.Duration

	ctx    context.Context // done when it has no lease any more
	cancel context.CancelFunc

	leases map[*etcd.Keepalive]struct{} // guarded by the beats' mu

	asked time.Time // when the renewals of now were asked for; only the goroutine touches it
}

// KeepAlive renews the lease at each beat, until it is let go.
func (bs *beats) KeepAlive(lease *etcd.Keepalive) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	b := bs.all[lease.TTL]
	if b == nil {
		b = &beat{of: bs, ttl: lease.TTL, leases: map[*etcd.Keepalive]struct{}{}}
		b.ctx, b.cancel = context.WithCancel(bs.links.ctx)
		bs.all[lease.TTL] = b
		bs.links.run(b.run)
	}
	b.leases[lease] = struct{}{}
}

// LetGo ends the renewals of the lease: none is sent any more.
func (bs *beats) LetGo(lease *etcd.Keepalive) {
	bs.mu.Lock()
	if b := bs.all[lease.TTL]; b != nil {
		delete(b.leases, lease)
		if len(b.leases) == 0 {
			delete(bs.all, lease.TTL)
			b.cancel()
		}
	}
	bs.mu.Unlock()
	bs.links.link().renewals.Forget(lease)
}

// wentBack tells all that etcd was wiped or restored.
func (bs *beats) wentBack() {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	for _, b := range bs.all {
		for lease := range b.leases {
			lease.WentBack()
		}
	}
}

// untilNext returns how long it takes to the next beat of this period.
func (bs *beats) untilNext(period time.Duration) time.Duration {
	since := time.Since(bs.began) - time.Duration(bs.phase*float64(period))
	if since < 0 {
		return -since
	}
	return period - since%period
}

// run is the life of the beat. What was asked for over a link that is left is asked for again over the next one.
func (b *beat) run() {
	defer b.cancel()
	next := time.NewTimer(b.of.untilNext(b.ttl / beatsPerTTL))
	defer next.Stop()
	late := time.NewTimer(b.ttl)
	defer late.Stop()
	l := b.of.links.link()
	for {
		select {
		case <-next.C:
			next.Reset(b.of.untilNext(b.ttl / beatsPerTTL))
			b.asked = time.Now()
			l = b.ask()
			late.Reset(b.patience(l))
		case <-late.C:
			if b.lookAfter(l) {
				late.Reset(b.patience(l))
			}
		case <-l.left.Done():
			l = b.ask()
			late.Reset(b.patience(l))
		case <-b.ctx.Done():
			return
		}
	}
}

// patience returns how long answers may take until the link is in doubt.
func (b *beat) patience(l *link) time.Duration {
	least := min(b.ttl/patienceShare, mostPatience)
	return min(max(least, l.pulse.Late()), b.ttl/beatsPerTTL)
}

// unheardLocked returns the leases that were not renewed since the last beat.
func (b *beat) unheardLocked() (leases []*etcd.Keepalive) {
	for lease := range b.leases {
		if !lease.IsRenewedSince(b.asked) {
			leases = append(leases, lease)
		}
	}
	return leases
}

// ask asks for the renewals of this beat, over the link of now, which it returns.
func (b *beat) ask() *link {
	l := b.of.links.enter()
	defer l.calls.Done()
	if !b.asked.IsZero() {
		b.of.mu.Lock() // so that none is let go meanwhile
		defer b.of.mu.Unlock()
		l.renewals.Ask(b.unheardLocked())
	}
	return l
}

// lookAfter puts the link in doubt where renewals have no answer, and tells of those whose lease has ended without. It
// reports whether there is something to look after.
func (b *beat) lookAfter(l *link) bool {
	if l.renewals.Idle() {
		return false
	}
	b.of.mu.Lock()
	unheard := b.unheardLocked()
	b.of.mu.Unlock()
	if len(unheard) == 0 {
		return false
	}
	if l.pulse.IsSilentSince(b.asked) || l.members() > 1 {
		b.of.links.suspect(l)
	}
	for _, lease := range unheard {
		lease.Expire(etcd.Because(context.DeadlineExceeded, "no renewal was answered for the whole TTL"))
	}
	return true
}
