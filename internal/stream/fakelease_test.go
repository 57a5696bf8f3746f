package stream

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/etcd"
	"github.com/discov-go/discov/internal/grpctest"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// testTTL is what the leases have, in etcd's seconds and ours.
const (
	testSeconds = 10
	testTTL     = testSeconds * time.Second
	testRev     = 42
)

// leaseServer is an etcd that renews leases as serve says, stream by stream.
type leaseServer struct {
	pb.UnimplementedLeaseServer
	counted
	serve func(s *leaseStream) error

	log   sync.Mutex
	asked []request
}

// request is one that the server has received.
type request struct {
	id     int64
	stream int // its number, from 1 on
	at     time.Time
}

// leaseStream is one stream, as the server has it.
type leaseStream struct {
	pb.Lease_LeaseKeepAliveServer
	n  int
	of *leaseServer
}

// LeaseKeepAlive implements pb.LeaseServer.
func (e *leaseServer) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	n, leave := e.enter()
	defer leave()
	return e.serve(&leaseStream{stream, n, e})
}

// next returns the next request.
func (s *leaseStream) next() (id int64, err error) {
	r, err := s.Recv()
	if err != nil {
		return 0, err
	}
	s.of.log.Lock()
	defer s.of.log.Unlock()
	s.of.asked = append(s.of.asked, request{r.GetID(), s.n, time.Now()})
	return r.GetID(), nil
}

// take returns the next n requests.
func (s *leaseStream) take(n int) (ids []int64, err error) {
	for len(ids) < n {
		id, err := s.next()
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// renew answers that a lease lives for this many seconds.
func (s *leaseStream) renew(id, seconds int64) error {
	return s.Send(&pb.LeaseKeepAliveResponse{Header: &pb.ResponseHeader{Revision: testRev}, ID: id, TTL: seconds})
}

// renewAll answers each request after a stall, in order, as etcd does.
func (s *leaseStream) renewAll(stall time.Duration) error {
	for {
		id, err := s.next()
		if err != nil {
			return err
		}
		if stall > 0 && !backoff.Pause(s.Context(), stall) {
			return s.Context().Err()
		}
		if err := s.renew(id, testSeconds); err != nil {
			return err
		}
	}
}

// await waits until a channel is closed, and returns false if the stream ends first.
func (s *leaseStream) await(closed <-chan struct{}) bool {
	select {
	case <-closed:
		return true
	case <-s.Context().Done():
		return false
	}
}

// hang answers nothing any more.
func (s *leaseStream) hang() error {
	for {
		if _, err := s.next(); err != nil {
			return err
		}
	}
}

// deny is etcd that renews all but those leases that are denied, for which it ends the stream.
func deny(denied func(id int64) bool) func(*leaseStream) error {
	return func(s *leaseStream) error {
		for {
			id, err := s.next()
			if err != nil {
				return err
			}
			if denied(id) {
				return rpctypes.ErrGRPCPermissionDenied
			}
			if err := s.renew(id, testSeconds); err != nil {
				return err
			}
		}
	}
}

// requests returns those that were received, and those of one lease where ids has one.
func (e *leaseServer) requests(ids ...int64) (these []request) {
	e.log.Lock()
	defer e.log.Unlock()
	for _, r := range e.asked {
		if len(ids) == 0 || r.id == ids[0] {
			these = append(these, r)
		}
	}
	return these
}

// requireOnceEach requires that each lease was asked for once, and no other.
func (e *leaseServer) requireOnceEach(t *testing.T, leases []*etcd.Keepalive) {
	t.Helper()
	asked := map[int64]int{}
	for _, r := range e.requests() {
		asked[r.id]++
	}
	for _, lease := range leases {
		require.Equalf(t, 1, asked[int64(lease.ID)], "requests for lease %d", lease.ID)
	}
	require.Equal(t, len(leases), len(asked), "leases that were asked for") //nolint:testifylint // Len would print them all
}

// forget forgets what was received.
func (e *leaseServer) forget() {
	e.log.Lock()
	defer e.log.Unlock()
	e.asked = nil
}

// renewals are those of a link to the server, each way of which takes latency.
type renewals struct {
	*Renewals
	pulse *Pulse
	leave context.CancelFunc
}

func newRenewals(t *testing.T, server *leaseServer, latency time.Duration) *renewals {
	t.Helper()
	return connected(t, serveLeases(t, server, latency))
}

func serveLeases(t *testing.T, server *leaseServer, latency time.Duration) *grpc.ClientConn {
	t.Helper()
	return grpctest.Serve(t, latency, func(s *grpc.Server) { pb.RegisterLeaseServer(s, server) })
}

func connected(t *testing.T, cc grpc.ClientConnInterface) *renewals {
	t.Helper()
	ctx, leave := context.WithCancel(context.Background())
	r := &renewals{pulse: &Pulse{}, leave: leave}
	r.Renewals = NewRenewals(ctx, cc, r.pulse, func(rev int64) {
		if rev != testRev {
			t.Errorf("heard of revision %d", rev)
		}
	})
	t.Cleanup(func() {
		leave()
		r.Wait()
	})
	return r
}

// awaitIdle waits until nothing waits for an answer, and returns how long that took.
func (r *renewals) awaitIdle(t *testing.T, within time.Duration) time.Duration {
	t.Helper()
	return soon(t, within, r.Idle, "all renewals are answered")
}

// grant returns n leases, from ID 1 on.
func grant(n int) (leases []*etcd.Keepalive) {
	for id := range n {
		leases = append(leases, etcd.NewKeepalive(clientv3.LeaseID(id+1), testTTL, time.Now()))
	}
	return leases
}

// requireRenewed requires that all leases were renewed since, and that nothing is wrong with them.
func requireRenewed(t *testing.T, since time.Time, leases ...*etcd.Keepalive) {
	t.Helper()
	for _, lease := range leases {
		require.Truef(t, lease.IsRenewedSince(since), "lease %d is renewed", lease.ID)
		require.NoErrorf(t, lease.Take(), "lease %d", lease.ID)
	}
}
