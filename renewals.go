package discov

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// errStreamEnded tells a request that its stream ended for a reason that is not its own.
var errStreamEnded = errors.New("the stream ended")

// errSilent ends a stream on which etcd has stopped answering.
var errSilent = errors.New("etcd is silent")

// renewals renews all leases of a link over one stream.
//
// The client's own Lease.KeepAlive gives no reason when its channel closes, tells of silence after a whole TTL only, and
// lets one lease whose renewal is denied starve its neighbours: etcd answers a denial by ending the stream. Here etcd's
// answers are matched with the requests, in their order, so that each renewal gets its own outcome.
type renewals struct {
	link *link

	mu   sync.Mutex
	cur  *renewalStream // nil before the first renewal
	pace *backoff       // of streams that end before etcd has answered on them
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
	answered time.Time       // zero before the first answer
	patience time.Duration   // the longest of those who have asked
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

// renew asks for one renewal over the shared stream and waits for the answer, over the next stream where one ends or has
// been silent for patience.
func (r *renewals) renew(ctx context.Context, id clientv3.LeaseID, patience time.Duration) (ttl, rev int64, err error) {
	var ended error // why the last stream did
	for {
		one := &renewRequest{ctx: ctx, id: id, done: make(chan struct{})}
		asked := time.Now()
		stream := r.ask(one)
		ttl, rev, err = stream.await(one, asked, patience)
		switch {
		case err != nil && err == ctx.Err() && ended != nil: //nolint:errorlint // await returns it as it stands
			return 0, 0, ended
		case !errors.Is(err, errStreamEnded):
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
	return stream.await(one, time.Now(), noPatience)
}

// noPatience is longer than any call.
const noPatience = time.Hour

// ask hands the request to the stream of now, a new one where there is none.
func (r *renewals) ask(one *renewRequest) *renewalStream {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cur != nil && r.cur.ask(one) {
		return r.cur
	}
	r.cur = newRenewalStream(r.link.left, r.link, r.delayLocked())
	r.cur.ask(one)
	go r.cur.run()
	return r.cur
}

// delayLocked is what the next stream is put off by: nothing, unless etcd has ended the last one unheard.
func (r *renewals) delayLocked() time.Duration {
	if r.cur == nil || r.cur.wasAnswered() {
		r.pace = newBackoff()
		return 0
	}
	return r.pace.take()
}

func newRenewalStream(ctx context.Context, l *link, delay time.Duration) *renewalStream {
	ctx, cancel := context.WithCancelCause(clientv3.WithRequireLeader(ctx))
	l.streams.Add(1)
	return &renewalStream{link: l, ctx: ctx, cancel: cancel, wake: make(chan struct{}, 1), delay: delay}
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

func (s *renewalStream) await(one *renewRequest, asked time.Time, patience time.Duration) (ttl, rev int64, err error) {
	late := time.NewTimer(s.share(patience))
	defer late.Stop()
	var silence <-chan struct{} // of all the link: another stream would be silent, too
	for {
		select {
		case <-one.done:
			return one.ttl, one.rev, one.err
		case <-one.ctx.Done():
			return 0, 0, one.ctx.Err()
		case <-silence:
			silence = nil
			late.Reset(lookEvery)
		case <-late.C:
			if silence = s.link.silence.now(); silence == nil {
				s.endIfSilentSince(asked)
				late.Reset(s.share(patience))
			}
		}
	}
}

// share is the patience to have with the stream: the longest of those who have asked.
func (s *renewalStream) share(patience time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.patience = max(s.patience, patience)
	return s.patience
}

// endIfSilentSince ends the stream unless etcd has answered anything on it since: then it is slow, not silent.
func (s *renewalStream) endIfSilentSince(since time.Time) {
	s.mu.Lock()
	silent := s.answered.Before(since) && time.Since(since) >= s.patience
	s.mu.Unlock()
	if silent {
		s.cancel(errSilent)
	}
}

func (s *renewalStream) wasAnswered() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.answered.IsZero()
}

// run is the life of the stream.
func (s *renewalStream) run() {
	defer s.link.streams.Done()
	pause(s.ctx, s.delay)
	err := s.converse()
	s.cancel(err)
	s.end(plain(err))
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
	s.answered = time.Now()
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
	ended := errStreamEnded
	if isDenied(err) { // a denial is that of one request, and an answer
		s.answered = time.Now()
	} else if err != nil {
		ended = fmt.Errorf("%w: %w", errStreamEnded, err)
	}
	for i, one := range append(s.unheard, s.unsent...) {
		one.err = ended
		if i == 0 && len(s.unheard) > 0 && isDenied(err) {
			one.err = err
		}
		close(one.done)
	}
	s.unsent, s.unheard = nil, nil
}
