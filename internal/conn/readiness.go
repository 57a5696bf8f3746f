package conn

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/discov-go/discov/internal/stream"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

// errShutdown is returned where the connection was closed for good.
var errShutdown = errors.New("the client was closed")

// readiness is the wait for a connection, one for all who want one, and why there is none. One wait serves all because each
// change of gRPC's state wakes all who wait for it, and there are several a second in an outage.
type readiness struct {
	ctx   context.Context // done when the link is left
	cc    *grpc.ClientConn
	pulse *stream.Pulse

	running sync.WaitGroup

	mu   sync.Mutex
	over chan struct{} // closed when the wait is; nil where nobody waits

	causeMu    sync.Mutex
	cause      error // nil where there was a connection after all
	causeSince time.Time
}

func newReadiness(ctx context.Context, cc *grpc.ClientConn, pulse *stream.Pulse) *readiness {
	return &readiness{ctx: ctx, cc: cc, pulse: pulse}
}

// isReady reports whether gRPC has a connection.
func (r *readiness) isReady() bool { return r.cc.GetState() == connectivity.Ready }

// await waits until gRPC has a connection. Its error is gRPC's own, which names the cause.
func (r *readiness) await(ctx context.Context) error {
	if r.isReady() {
		return nil
	}
	select {
	case <-r.wait():
		if r.cc.GetState() == connectivity.Shutdown {
			return errShutdown
		}
		return r.ctx.Err()
	case <-ctx.Done():
		return r.because(status.FromContextError(ctx.Err()).Err())
	}
}

// awaitAnother waits until gRPC has lost its connection, if it has one, and has one again.
func (r *readiness) awaitAnother(ctx context.Context) error {
	r.awaitLoss(ctx)
	return r.await(ctx)
}

// awaitLoss waits until gRPC has no connection.
func (r *readiness) awaitLoss(ctx context.Context) {
	r.cc.WaitForStateChange(ctx, connectivity.Ready)
}

// wait returns a channel that is closed when gRPC has a connection, or can have none any more.
func (r *readiness) wait() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over == nil {
		r.over = make(chan struct{})
		r.running.Go(r.connect)
	}
	return r.over
}

// connect connects. How long that took tells the round trip where the first try has succeeded: it has one of them at least,
// and no more where a proxy nearby accepts it. Later tries cannot be told from the pauses between them (because: after an
// outage of minutes a round trip seemed to take as long).
func (r *readiness) connect() {
	began, failed := time.Now(), false
	for state := r.cc.GetState(); state != connectivity.Ready && state != connectivity.Shutdown; state = r.cc.GetState() {
		failed = failed || state == connectivity.TransientFailure
		r.cc.Connect()
		if !r.cc.WaitForStateChange(r.ctx, state) {
			break
		}
	}
	if r.isReady() && !failed {
		r.pulse.Expect(time.Since(began))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.over)
	r.over = nil
}

// because returns why there is no connection, in gRPC's words, found out once for all who ask at about the same time. Where
// there is one after all, it is err.
func (r *readiness) because(err error) error {
	r.causeMu.Lock()
	defer r.causeMu.Unlock()
	if time.Since(r.causeSince) > causeFor {
		r.cause, r.causeSince = r.whyNotReady(), time.Now()
	}
	if r.cause != nil {
		return r.cause
	}
	return err
}

// whyNotReady asks gRPC, with a request that it refuses with the cause where it has failed to connect, and that has hardly any
// time where it is still at it. The time of who asks is over by then, and the link may be left.
func (r *readiness) whyNotReady() error {
	within := time.Millisecond
	if r.cc.GetState() == connectivity.TransientFailure {
		within = causeFor // because: on a late machine a millisecond was over before gRPC looked, and no cause was named
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	_, err := pb.NewAuthClient(r.cc).AuthStatus(ctx, &pb.AuthStatusRequest{}, grpc.WaitForReady(false))
	switch why := status.Convert(err); why.Code() {
	case codes.DeadlineExceeded, codes.Unavailable:
		return status.Error(codes.DeadlineExceeded, why.Message())
	default:
		return nil
	}
}
