package stream

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/etcd"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

var (
	// errStuck ends a stream on which a request has no answer for too long.
	errStuck = errors.New("a renewal had no answer")
	// errUnneeded ends a stream that has nothing to do any more.
	errUnneeded = errors.New("the stream is not needed")
)

// renewal is a request to renew one lease, until it is answered or forgotten.
type renewal struct {
	lease  *etcd.Keepalive
	stream *renewalStream // nil while it is in the queue
	sent   time.Time      // zero until it is
	repeat int            // how often it was made again
	done   []chan<- error // of those that wait for this answer
}

// owner is whose stream it is.
type owner interface {
	lock()
	unlock()
	// sentLocked hears that requests were sent.
	sentLocked()
	// hear hears an answer, and end why the stream has ended.
	hear(s *renewalStream, answer *pb.LeaseKeepAliveResponse)
	end(s *renewalStream, err error)
}

// renewalStream is one stream, from its opening to its end. Its owner's lock guards its fields from unsent on.
type renewalStream struct {
	of     owner
	client pb.LeaseClient
	ctx    context.Context
	cancel context.CancelCauseFunc
	wake   chan struct{} // holds one token when unsent has grown
	alone  bool          // whether it serves one request only

	unsent   []*renewal
	sent     []*renewal // oldest first, which has no answer; some of the others may have one
	load     int        // how many have no answer
	turn     time.Time  // when the oldest of sent became that by an answer to the one before it
	answered bool       // whether etcd has answered anything
}

func newRenewalStream(ctx context.Context, of owner, client pb.LeaseClient) *renewalStream {
	s := &renewalStream{of: of, client: client, wake: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	return s
}

// isBusy reports whether there is a request without an answer.
func (s *renewalStream) isBusy() bool { return s.load > 0 }

// add queues a request.
func (s *renewalStream) add(one *renewal) {
	one.stream = s
	s.load++
	s.unsent = append(s.unsent, one)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// drop forgets a request that is answered or given up.
func (s *renewalStream) drop(one *renewal) {
	one.stream = nil
	for len(s.sent) > 0 && s.sent[0].stream != s {
		s.sent = s.sent[1:]
	}
	if s.load--; s.load == 0 {
		s.sent = nil // which may be thousands
	}
}

// answer notes the answer to a request.
func (s *renewalStream) answer(one *renewal, now time.Time) {
	if s.oldest() == one {
		s.turn = now
	}
	s.drop(one)
}

// oldest returns the request that waits longest for an answer, nil where none does.
func (s *renewalStream) oldest() *renewal {
	if len(s.sent) == 0 {
		return nil
	}
	return s.sent[0]
}

// waitsSince returns since when the oldest request waits for nothing but its own answer: etcd answers a stream's requests
// in order.
func (s *renewalStream) waitsSince(oldest *renewal) time.Time {
	if s.turn.After(oldest.sent) {
		return s.turn
	}
	return oldest.sent
}

// takeAll returns all requests without an answer, oldest first, as they were before they were handed to the stream.
func (s *renewalStream) takeAll() (left []*renewal) {
	for _, one := range append(s.sent, s.unsent...) {
		if one.stream == s {
			one.lease.Unheard()
			one.stream, one.sent = nil, time.Time{}
			left = append(left, one)
		}
	}
	s.sent, s.unsent, s.load = nil, nil, 0
	return left
}

// run is the life of the stream.
func (s *renewalStream) run(delay time.Duration) {
	defer s.cancel(nil)
	backoff.Pause(s.ctx, delay)
	err := s.converse()
	if cause := context.Cause(s.ctx); errors.Is(cause, errStuck) || errors.Is(cause, errUnneeded) {
		err = cause
	}
	s.of.end(s, etcd.Plain(err))
}

func (s *renewalStream) converse() error {
	stream, err := s.client.LeaseKeepAlive(s.ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	var sending sync.WaitGroup
	defer sending.Wait()
	defer s.cancel(nil)
	sending.Go(func() { s.send(stream) })
	for {
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		s.of.hear(s, answer)
		if s.isDone() {
			return nil
		}
	}
}

// isDone reports whether a stream that serves one request only has done so.
func (s *renewalStream) isDone() bool {
	s.of.lock()
	defer s.of.unlock()
	return s.alone && !s.isBusy()
}

func (s *renewalStream) send(stream pb.Lease_LeaseKeepAliveClient) {
	var request pb.LeaseKeepAliveRequest
	for {
		select {
		case <-s.wake:
		case <-s.ctx.Done():
			return
		}
		for _, one := range s.takeUnsent() {
			request.ID = int64(one.lease.ID)
			if err := stream.Send(&request); err != nil {
				return // the receiving side hears why
			}
		}
	}
}

// takeUnsent returns what is to be sent now, and notes it as sent.
func (s *renewalStream) takeUnsent() (batch []*renewal) {
	s.of.lock()
	defer s.of.unlock()
	now := time.Now()
	for _, one := range s.unsent {
		if one.stream == s {
			one.sent = now
			one.lease.Sent()
			batch = append(batch, one)
		}
	}
	s.unsent = nil
	s.sent = append(s.sent, batch...)
	if len(batch) > 0 {
		s.of.sentLocked()
	}
	return batch
}
