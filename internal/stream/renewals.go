package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/etcd"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// Renewals renews the leases of a link: over one stream while etcd is quick, over several while it is slow. There is at
// most one request for each lease under way.
//
// The client's own Lease.KeepAlive gives no reason when its channel closes, tells of silence after a whole TTL only, and
// lets one lease whose renewal is denied starve its neighbours: etcd answers a denial by ending the stream. Here each
// answer goes to the lease that it names. etcd answers the requests of a stream in their order, but its grpc-proxy does
// not.
type Renewals struct {
	ctx    context.Context // done when the link is left
	client pb.LeaseClient
	pulse  *Pulse
	heard  func(rev int64)

	running sync.WaitGroup

	mu      sync.Mutex
	queue   []*renewal // not handed to a stream yet; those that are forgotten are skipped
	waiting map[clientv3.LeaseID]*renewal
	streams []*renewalStream
	spread  time.Time   // when more than one of them was needed last
	sweep   *time.Timer // nil where none is due
	ended   error       // why the last stream that failed did
	endings int         // how many have
	unheard bool        // whether it did so before etcd had answered on it
	pace    *backoff.Backoff
}

// NewRenewals returns the Renewals of the link that cc connects, until ctx is done. Each answer's revision goes to heard.
func NewRenewals(ctx context.Context, cc grpc.ClientConnInterface, pulse *Pulse, heard func(rev int64)) *Renewals {
	return &Renewals{
		ctx:     clientv3.WithRequireLeader(ctx),
		client:  pb.NewLeaseClient(cc),
		pulse:   pulse,
		heard:   heard,
		waiting: map[clientv3.LeaseID]*renewal{},
		pace:    backoff.New(),
	}
}

func (r *Renewals) lock()   { r.mu.Lock() }
func (r *Renewals) unlock() { r.mu.Unlock() }

// Wait waits until all goroutines have ended. ctx must be done.
func (r *Renewals) Wait() {
	r.mu.Lock()
	r.queue = nil // from now on, nothing begins
	r.mu.Unlock()
	r.running.Wait()
}

// Ask asks for a renewal of each lease for which none is under way. It does not wait for the answers, which the leases
// note.
func (r *Renewals) Ask(leases []*etcd.Keepalive) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() != nil {
		return
	}
	for _, lease := range leases {
		r.askLocked(lease)
	}
	r.handOutLocked()
}

// Renew waits for the answer to a renewal of the lease, which is asked for unless one is under way.
func (r *Renewals) Renew(ctx context.Context, lease *etcd.Keepalive) error {
	done := make(chan error, 1)
	r.mu.Lock()
	if err := r.ctx.Err(); err != nil {
		r.mu.Unlock()
		return err
	}
	one := r.askLocked(lease)
	one.done = append(one.done, done)
	before := r.endings
	r.handOutLocked()
	r.mu.Unlock()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.endings != before {
			return r.ended
		}
		return ctx.Err()
	}
}

// Forget takes back what is asked for the lease, unless it was sent: a lease that is being withdrawn must not be renewed.
func (r *Renewals) Forget(lease *etcd.Keepalive) {
	r.mu.Lock()
	defer r.mu.Unlock()
	one := r.waiting[lease.ID]
	if one == nil || one.lease != lease {
		return
	}
	delete(r.waiting, lease.ID)
	s := one.stream
	if s == nil {
		return
	}
	s.drop(one)
	if s.alone {
		s.cancel(errUnneeded)
	}
	r.goOnLocked(s)
}

// Idle reports whether no lease waits for an answer.
func (r *Renewals) Idle() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.waiting) == 0
}

func (r *Renewals) askLocked(lease *etcd.Keepalive) *renewal {
	one := r.waiting[lease.ID]
	if one != nil {
		return one
	}
	one = &renewal{lease: lease}
	r.waiting[lease.ID] = one
	if lease.IsDenied() {
		r.openAloneLocked(one)
	} else {
		r.queue = append(r.queue, one)
	}
	return one
}

func (r *Renewals) isWaitingLocked(one *renewal) bool { return r.waiting[one.lease.ID] == one }

// handOutLocked hands the queue to the streams: one request first, and the rest once that is answered, or at once where
// etcd is known to be slow (because: etcd answers one after the other on each stream, and 1.5 s for each on a slow disk
// cost ten Publishers all leases; what waits on one stream cannot be moved to another without being asked twice).
func (r *Renewals) handOutLocked() {
	r.skipForgottenLocked()
	switch {
	case len(r.queue) == 0:
	case r.isSlow():
		r.spreadLocked()
	case !slices.ContainsFunc(r.streams, (*renewalStream).isBusy):
		r.handLocked(r.anyLocked(), 1)
	}
}

// isSlow reports whether etcd is known to be slow.
func (r *Renewals) isSlow() bool { return r.pulse.RoundTrip() > busyAfter }

// goOnLocked gives a stream whose last request was answered the next ones.
func (r *Renewals) goOnLocked(s *renewalStream) {
	if s.isBusy() || s.alone {
		return
	}
	r.handLocked(s, chunk)
	if len(r.queue) == 0 && time.Since(r.spread) > streamsKept {
		r.endIdleLocked()
	}
}

// spreadLocked hands all of the queue out, to the streams with the least to do.
func (r *Renewals) spreadLocked() {
	r.spread = time.Now()
	for r.skipForgottenLocked(); len(r.queue) > 0; r.skipForgottenLocked() {
		s := r.anyLocked()
		if s.isBusy() && len(r.streams) < mostStreams {
			s = r.openLocked()
		}
		r.handLocked(s, 1)
	}
}

// anyLocked returns the stream with the least to do, a new one where there is none.
func (r *Renewals) anyLocked() *renewalStream {
	if len(r.streams) == 0 {
		return r.openLocked()
	}
	return slices.MinFunc(r.streams, func(a, b *renewalStream) int { return a.load - b.load })
}

// endIdleLocked ends all streams but one that have nothing to do.
func (r *Renewals) endIdleLocked() {
	for _, s := range slices.Clone(r.streams) {
		if len(r.streams) > 1 && !s.isBusy() {
			r.removeLocked(s)
			s.cancel(errUnneeded)
		}
	}
}

func (r *Renewals) skipForgottenLocked() {
	for len(r.queue) > 0 && !r.isWaitingLocked(r.queue[0]) {
		r.queue = r.queue[1:]
	}
	if len(r.queue) == 0 {
		r.queue = nil // which may have been thousands
	}
}

// handLocked hands up to n requests to the stream.
func (r *Renewals) handLocked(s *renewalStream, n int) {
	for r.skipForgottenLocked(); n > 0 && len(r.queue) > 0; r.skipForgottenLocked() {
		s.add(r.queue[0])
		r.queue = r.queue[1:]
		n--
	}
}

// sentLocked notes that requests were sent, so that they are looked after.
func (r *Renewals) sentLocked() {
	if r.sweep == nil {
		r.sweep = time.AfterFunc(busyAfter, r.lookAfter)
	}
}

// lookAfter spreads what waits behind a request that has no answer for long, and makes that request again over another
// stream, while etcd answers others (because: a request that died with the leader is answered after 7 s). One that waits
// for its turn is not made again (because: a hundred leases of an etcd that took 0.7 s for each were asked for so often
// that they ended), nor is one of an etcd that has stopped to answer.
func (r *Renewals) lookAfter() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweep = nil
	now, again := time.Now(), max(askAgain, r.pulse.Late())
	for _, s := range slices.Clone(r.streams) {
		one := s.oldest()
		if one == nil {
			continue
		}
		r.sentLocked()
		if now.Sub(one.sent) >= busyAfter {
			r.spreadLocked()
		}
		since := s.waitsSince(one)
		isDue := now.Sub(since) >= again<<min(one.repeat, maxRepeats)
		if isDue && !r.pulse.IsSilentSince(since.Add(busyAfter)) && s.ctx.Err() == nil {
			one.repeat++
			s.cancel(errStuck)
		}
	}
}

// hear gives an answer to the lease that it names. One that nobody waits for is nobody's.
func (r *Renewals) hear(s *renewalStream, answer *pb.LeaseKeepAliveResponse) {
	r.heard(answer.GetHeader().GetRevision())
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	s.answered = true
	one := r.waiting[clientv3.LeaseID(answer.GetID())]
	if one == nil || one.stream != s || one.sent.IsZero() {
		r.pulse.NoteAnswer()
		return
	}
	r.pulse.NoteRoundTrip(one.sent, now)
	s.answer(one, now)
	if ttl := answer.GetTTL(); ttl > 0 {
		one.lease.Renewed(one.sent, now, time.Duration(ttl)*time.Second)
		r.settleLocked(one, nil)
	} else {
		r.settleLocked(one, rpctypes.ErrLeaseNotFound)
	}
	r.goOnLocked(s)
}

// settleLocked ends a request.
func (r *Renewals) settleLocked(one *renewal, err error) {
	if !r.isWaitingLocked(one) {
		return
	}
	delete(r.waiting, one.lease.ID)
	if err != nil {
		one.lease.Fail(err)
	}
	for _, done := range one.done {
		done <- err
	}
}

// end puts what a stream leaves back into the queue. A denial is the answer to one request: most likely the oldest, which
// is asked for alone then, to be sure.
func (r *Renewals) end(s *renewalStream, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removeLocked(s)
	if r.ctx.Err() != nil || errors.Is(err, errUnneeded) {
		return
	}
	denied := etcd.IsDenied(err)
	if err != nil && !denied {
		r.ended = fmt.Errorf("%w: %w", etcd.ErrStreamEnded, err)
		r.endings++
	}
	left := s.takeAll()
	if s.alone {
		r.endAloneLocked(left, denied, err)
		return
	}
	if denied && len(left) > 0 {
		s.answered = true
		r.openAloneLocked(left[0])
		left = left[1:]
	}
	r.unheard = !s.answered
	r.queue = append(left, r.queue...)
	r.handOutLocked()
}

// endAloneLocked ends the request of a stream of its own, if it is left: it is denied, or asked for anew by whom it concerns.
func (r *Renewals) endAloneLocked(left []*renewal, denied bool, err error) {
	for _, one := range left {
		if !denied {
			err = cmp.Or(r.ended, etcd.ErrStreamEnded)
		}
		r.settleLocked(one, err)
	}
}

func (r *Renewals) removeLocked(s *renewalStream) {
	r.streams = slices.DeleteFunc(r.streams, func(one *renewalStream) bool { return one == s })
}

// openLocked opens a stream, put off where the last one has ended unheard and no other has been heard.
func (r *Renewals) openLocked() *renewalStream {
	var delay time.Duration
	switch {
	case !r.unheard:
		r.pace.Reset()
	case !slices.ContainsFunc(r.streams, func(s *renewalStream) bool { return s.answered }):
		delay = r.pace.Take()
	}
	s := newRenewalStream(r.ctx, r, r.client)
	r.streams = append(r.streams, s)
	r.running.Go(func() { s.run(delay) })
	return s
}

// openAloneLocked opens a stream for one request.
func (r *Renewals) openAloneLocked(one *renewal) {
	s := newRenewalStream(r.ctx, r, r.client)
	s.alone = true
	s.add(one)
	r.running.Go(func() { s.run(0) })
}
