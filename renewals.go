package discov

import (
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

const (
	// A stream on which a request has no answer for busyAfter is not given another: etcd answers one after the other on
	// each. Where round trips of late were as slow as that, one request is enough.
	busyAfter = 100 * time.Millisecond
	// renewalStreams is how many there are at most.
	renewalStreams = 8
)

// renewals renews all leases of a link: over one stream while etcd is quick, over several while it is slow.
//
// The client's own Lease.KeepAlive gives no reason when its channel closes, tells of silence after a whole TTL only, and
// lets one lease whose renewal is denied starve its neighbours: etcd answers a denial by ending the stream. Here etcd's
// answers are matched with the requests, in their order, so that each renewal gets its own outcome.
type renewals struct {
	link *link

	mu      sync.Mutex
	streams []*renewalStream // those that have not ended, and maybe some that have
	unheard bool             // whether the last one that ended did so before etcd had answered on it
	pace    *backoff.Backoff // of streams after such a one
}

// renewalStream is one stream, from its opening to its end.
type renewalStream struct {
	link   *link
	ctx    context.Context
	cancel context.CancelCauseFunc
	wake   chan struct{} // holds one token when unsent has grown
	delay  time.Duration // before it is opened

	mu       sync.Mutex
	ended    bool
	unsent   []*renewRequest
	unheard  []*renewRequest // sent; etcd answers in this order
	answered bool            // whether etcd has answered anything
}

// renewRequest is one request. Its outcome may be read once done is closed.
type renewRequest struct {
	ctx  context.Context
	id   clientv3.LeaseID
	sent time.Time

	done chan struct{}
	ttl  int64
	rev  int64
	err  error
}

// renew asks for one renewal over a shared stream and waits for the answer, over the next stream where one ends.
func (r *renewals) renew(ctx context.Context, id clientv3.LeaseID) (ttl, rev int64, err error) {
	var ended error // why the last stream did
	for {
		one := &renewRequest{ctx: ctx, id: id, done: make(chan struct{})}
		r.ask(one)
		ttl, rev, err = one.await()
		switch {
		case err != nil && err == ctx.Err() && ended != nil: //nolint:errorlint // await returns it as it stands
			return 0, 0, ended
		case !errors.Is(err, etcd.ErrStreamEnded):
			return ttl, rev, err
		}
		ended = err
	}
}

// renewAlone renews over a stream that serves this one request.
func (r *renewals) renewAlone(ctx context.Context, id clientv3.LeaseID) (ttl, rev int64, err error) {
	stream := newRenewalStream(ctx, r.link, 0)
	defer stream.cancel(nil)
	one := &renewRequest{ctx: ctx, id: id, done: make(chan struct{})}
	stream.ask(one)
	go stream.run()
	return one.await()
}

// ask hands the request to the first stream that is not busy, to a new one where all are, or else to the one with the
// least to do. Those behind the first that have nothing to do are ended.
func (r *renewals) ask(one *renewRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.streams = slices.DeleteFunc(r.streams, r.hasEndedLocked)
	slow := r.link.slowRoundTrip() > busyAfter
	asked := false
	for _, stream := range r.streams {
		if asked {
			stream.endIfIdle()
		} else {
			asked = !stream.isBusy(slow) && stream.ask(one)
		}
	}
	if !asked && len(r.streams) == renewalStreams {
		asked = slices.MinFunc(r.streams, func(a, b *renewalStream) int { return a.load() - b.load() }).ask(one)
	}
	if !asked {
		r.openLocked(one)
	}
}

func (r *renewals) hasEndedLocked(stream *renewalStream) bool {
	stream.mu.Lock()
	defer stream.mu.Unlock()
	if stream.ended {
		r.unheard = !stream.answered
	}
	return stream.ended
}

// openLocked opens a stream for the request, put off where the last one has ended unheard and no other has been heard.
func (r *renewals) openLocked(one *renewRequest) {
	var delay time.Duration
	switch {
	case !r.unheard:
		r.pace = backoff.New()
	case !slices.ContainsFunc(r.streams, (*renewalStream).hasAnswered):
		delay = r.pace.Take()
	}
	stream := newRenewalStream(r.link.left, r.link, delay)
	r.streams = append(r.streams, stream)
	stream.ask(one)
	go stream.run()
}

func (s *renewalStream) hasAnswered() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answered
}

func newRenewalStream(ctx context.Context, l *link, delay time.Duration) *renewalStream {
	ctx, cancel := context.WithCancelCause(clientv3.WithRequireLeader(ctx))
	l.streams.Add(1)
	return &renewalStream{link: l, ctx: ctx, cancel: cancel, wake: make(chan struct{}, 1), delay: delay}
}

// isBusy says whether there is a request without an answer, and for long, unless etcd is slow.
func (s *renewalStream) isBusy(slow bool) bool {
	if slow {
		return s.load() > 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.unheard) > 0 && time.Since(s.unheard[0].sent) > busyAfter
}

// load is how many requests have no answer.
func (s *renewalStream) load() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.unsent) + len(s.unheard)
}

func (s *renewalStream) endIfIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.unsent)+len(s.unheard) == 0 {
		s.ended = true
		s.cancel(nil)
	}
}

// ask queues the request, and says no where the stream has ended.
func (s *renewalStream) ask(one *renewRequest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.unsent = append(s.unsent, one)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return true
}

// await waits for the outcome.
func (one *renewRequest) await() (ttl, rev int64, err error) {
	select {
	case <-one.done:
		return one.ttl, one.rev, one.err
	case <-one.ctx.Done():
		return 0, 0, one.ctx.Err()
	}
}

// run is the life of the stream.
func (s *renewalStream) run() {
	defer s.link.streams.Done()
	backoff.Pause(s.ctx, s.delay)
	err := s.converse()
	s.cancel(err)
	s.end(etcd.Plain(err))
}

func (s *renewalStream) converse() error {
	if err := s.link.account.ensure(s.ctx); err != nil {
		return err
	}
	used := s.link.account.inUse()
	defer context.AfterFunc(used.hangs, func() { s.cancel(errTokenHangs) })()
	stream, err := s.link.leases.LeaseKeepAlive(s.ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	s.link.streams.Go(func() { s.send(stream) })
	for {
		answer, err := stream.Recv()
		if err != nil {
			s.link.account.reject(used, err)
			return err
		}
		s.hear(answer)
	}
}

func (s *renewalStream) send(stream pb.Lease_LeaseKeepAliveClient) {
	for {
		select {
		case <-s.wake:
		case <-s.ctx.Done():
			return
		}
		for one := s.next(); one != nil; one = s.next() {
			if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(one.id)}); err != nil {
				return // the receiving side hears why
			}
		}
	}
}

// next moves a request from unsent to unheard. One that its caller has given up is dropped: it must not renew a lease
// that is being withdrawn.
func (s *renewalStream) next() *renewRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.unsent) > 0 {
		one := s.unsent[0]
		s.unsent = s.unsent[1:]
		if one.ctx.Err() == nil {
			one.sent = time.Now()
			s.unheard = append(s.unheard, one)
			return one
		}
	}
	return nil
}

func (s *renewalStream) hear(answer *pb.LeaseKeepAliveResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answered = true
	s.link.noteAnswer()
	if len(s.unheard) == 0 {
		return
	}
	one := s.unheard[0]
	s.unheard = s.unheard[1:]
	s.link.noteRoundTrip(time.Since(one.sent))
	one.ttl, one.rev = answer.GetTTL(), answer.GetHeader().GetRevision()
	if one.ttl <= 0 {
		one.err = rpctypes.ErrLeaseNotFound
	}
	close(one.done)
}

// end gives a denial to the request that it answers, the oldest one, and tells all others that the stream has ended.
func (s *renewalStream) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	ended := etcd.ErrStreamEnded
	if etcd.IsDenied(err) { // a denial is that of one request, and an answer
		s.answered = true
	} else if err != nil {
		ended = fmt.Errorf("%w: %w", etcd.ErrStreamEnded, err)
	}
	for i, one := range append(s.unheard, s.unsent...) {
		one.err = ended
		if i == 0 && len(s.unheard) > 0 && etcd.IsDenied(err) {
			one.err = err
		}
		close(one.done)
	}
	s.unsent, s.unheard = nil, nil
}
