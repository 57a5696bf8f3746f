package discov_test

import (
	"context"
	"net"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
)

// Faults of a single method, made in the client, and counts of what a fault makes the library do.

// lateOn makes every answer on a stream of the method wait for a while.
func lateOn(method string, by time.Duration) grpc.DialOption {
	return grpc.WithChainStreamInterceptor(
		func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, full string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := open(ctx, desc, cc, full, opts...)
			if err != nil || path.Base(full) != method {
				return stream, err
			}
			return &lateStream{stream, by}, nil
		})
}

// lateStream is a stream whose answers come late.
type lateStream struct {
	grpc.ClientStream
	by time.Duration
}

func (s *lateStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	select {
	case <-time.After(s.by):
	case <-s.Context().Done():
	}
	return err
}

// dials counts the connections that clients begin to make, wherever to, each after a round trip of TCP's where there is one:
// a path in front of etcd accepts at once.
type dials struct {
	atomic.Int64
	roundTrip time.Duration
}

// option is to be given to all who are counted together, and share a connection.
func (d *dials) option() grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		d.Add(1)
		select {
		case <-time.After(d.roundTrip):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	})
}

// since returns how many there were since n.
func (d *dials) since(n int64) int { return int(d.Load() - n) }

// counted is what counts the requests that it gets: a Server or a Process.
type counted interface{ Requests() map[string]int }

// requestsOf returns the requests of each method that all of these got.
func requestsOf[M counted](members []M) map[string]int {
	total := map[string]int{}
	for _, m := range members {
		for method, n := range m.Requests() {
			total[method] += n
		}
	}
	return total
}

// grown returns by how much each count has grown.
func grown(before, after map[string]int) map[string]int {
	by := map[string]int{}
	for method, n := range after {
		if n > before[method] {
			by[method] = n - before[method]
		}
	}
	return by
}

// writing writes another key all the time, so that etcd's revision moves, until it is ended.
func (s *scene) writing() (end func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	var running sync.WaitGroup
	c := s.etcd.Client(s.t)
	running.Go(func() {
		for ctx.Err() == nil {
			_, _ = c.Put(ctx, "other", "x")
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	})
	end = sync.OnceFunc(func() { cancel(); running.Wait() })
	s.t.Cleanup(end)
	return end
}
