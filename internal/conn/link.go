package conn

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/discov-go/discov/internal/auth"
	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/etcd"
	"github.com/discov-go/discov/internal/stream"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// link is one client, and the streams on it that all users of a connection share.
type link struct {
	client   *clientv3.Client
	cc       *grpc.ClientConn
	kv       pb.KVClient
	leases   pb.LeaseClient
	account  *auth.Account // nil without one
	ready    *readiness
	renewals *stream.Renewals
	watches  *stream.Watches
	pulse    stream.Pulse

	brisk bool
	ours  bool // the library's, to be closed

	attached chan struct{} // closed when there is a client

	left  context.Context // done when nobody is to use the link any more
	leave context.CancelFunc

	calls     sync.WaitGroup // Add only while the link is its Conn's current one, or in a call
	attendant attendant
}

func newLink() *link {
	l := &link{attached: make(chan struct{})}
	l.left, l.leave = context.WithCancel(context.Background())
	context.AfterFunc(l.left, l.attendant.cancelAll)
	return l
}

// borrow makes a link of the caller's client.
func borrow(client *clientv3.Client, h *history) *link {
	l := newLink()
	stop := context.AfterFunc(client.Ctx(), l.attendant.cancelAll)
	context.AfterFunc(l.left, func() { stop() }) // or the client would hold the link for as long as it lives
	l.attach(client, h)
	return l
}

func (l *link) attach(client *clientv3.Client, h *history) {
	l.client, l.cc = client, client.ActiveConnection()
	// Not the client's own, which try again up to a hundred times, 25 ms apart, while there is no leader.
	l.kv, l.leases = pb.NewKVClient(l.cc), pb.NewLeaseClient(l.cc)
	l.ready = newReadiness(l.left, l.cc, &l.pulse)
	l.renewals = stream.NewRenewals(l.left, l.cc, &l.pulse, h.heard)
	l.watches = stream.NewWatches(l.left, l.cc, &l.pulse, h.heard)
	close(l.attached)
}

// close ends the streams, and the client if it is the library's. All calls must have been told to end.
func (l *link) close() {
	l.leave()
	l.calls.Wait()
	l.renewals.Wait()
	l.watches.Wait()
	l.account.Wait()
	l.ready.running.Wait()
	if l.ours {
		_ = l.client.Close() // says only that its context is done, which is so
	}
}

// members returns how many there are to answer.
func (l *link) members() int { return len(l.client.Endpoints()) }

// isClosedByCaller reports whether the caller has closed a client that was given with WithClient. A call on it would take
// 2.5 s to fail.
func (l *link) isClosedByCaller() bool {
	return !l.ours && l.client.Ctx().Err() != nil
}

// await waits for a connection.
func (l *link) await(ctx context.Context) error {
	err := l.ready.await(ctx)
	if err != nil && l.isClosedByCaller() {
		return etcd.ErrClientClosed
	}
	return err
}

// probe asks etcd one thing for each member at once, so that the balancer asks all of them that it is connected to, again
// and again until all are answered. It returns false if ctx is done first.
func (l *link) probe(ctx context.Context) bool {
	ctx = auth.WithoutToken(ctx)
	for again := backoff.New(); ctx.Err() == nil; again.Wait(ctx) {
		if l.probeTimes(ctx, l.members()) {
			return true
		}
	}
	return false
}

// probeOnce asks one thing as soon as there is a connection, and returns how long the answer took. It returns false if that
// is longer than a round trip should take, or if ctx is done first.
func (l *link) probeOnce(ctx context.Context, within time.Duration) (took time.Duration, answered bool) {
	if l.await(ctx) != nil {
		return 0, false
	}
	ctx, cancel := context.WithTimeout(auth.WithoutToken(ctx), max(within, probeTimeout))
	defer cancel()
	began := time.Now()
	for again := backoff.New(); ctx.Err() == nil; again.Wait(ctx) {
		if l.probeTimes(ctx, 1) {
			return time.Since(began), true
		}
	}
	return 0, false
}

// probeTimes asks n things at once, and reports whether all are answered.
func (l *link) probeTimes(ctx context.Context, n int) bool {
	answers := make(chan bool, n)
	for range n {
		go func() {
			answered := auth.IsAnswered(ctx, l.cc)
			if answered {
				l.pulse.NoteAnswer() // one of several members is not silent
			}
			answers <- answered
		}()
	}
	all := true
	for range n {
		all = <-answers && all
	}
	return all
}

// isMute reports whether an error tells that there was no answer, but not why.
func isMute(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, etcd.ErrStreamEnded)
}
