package discov

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/backoff"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// stallingEtcd answers renewals as etcd does, one after the other on each stream, each after a stall: its disk is slow.
// With a stall below zero it knows no leader.
type stallingEtcd struct {
	pb.UnimplementedLeaseServer
	pb.UnimplementedKVServer
	stall   time.Duration
	opened  atomic.Int32 // streams
	streams atomic.Int32 // of now
	most    atomic.Int32
}

func startStallingEtcd(t *testing.T, stall time.Duration) (etcd *stallingEtcd, endpoint string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	etcd = &stallingEtcd{stall: stall}
	server := grpc.NewServer()
	pb.RegisterLeaseServer(server, etcd)
	pb.RegisterKVServer(server, etcd)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		assert.NoError(t, <-served)
	})
	return etcd, listener.Addr().String()
}

func (e *stallingEtcd) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	e.opened.Add(1)
	if e.stall < 0 {
		return rpctypes.ErrGRPCNoLeader
	}
	e.most.Store(max(e.most.Load(), e.streams.Add(1)))
	defer e.streams.Add(-1)
	for {
		request, err := stream.Recv()
		if err != nil || !backoff.Pause(stream.Context(), e.stall) {
			return err
		}
		if err := stream.Send(&pb.LeaseKeepAliveResponse{Header: &pb.ResponseHeader{}, ID: request.ID, TTL: 10}); err != nil {
			return err
		}
	}
}

func (*stallingEtcd) Range(context.Context, *pb.RangeRequest) (*pb.RangeResponse, error) {
	return &pb.RangeResponse{Header: &pb.ResponseHeader{}}, nil
}

func TestRenewalsOfASlowEtcdDoNotQueueUp(t *testing.T) {
	t.Parallel()
	const leases, stall = 10, 1500 * time.Millisecond
	etcd, endpoint := startStallingEtcd(t, stall)
	s := newSession(t, newTarget([]string{endpoint}, defaultOptions()))
	s.call = defaultTimeout / 2
	for range 2 {
		var all sync.WaitGroup
		for id := range clientv3.LeaseID(leases) {
			time.Sleep(defaultTTL / 3 / 4 / leases) // as they are spread over the last quarter of their time
			all.Go(func() {
				ttl, _, err := s.Renew(t.Context(), id+1, false, defaultTTL*2/3)
				assert.NoError(t, err)
				assert.EqualValues(t, 10, ttl)
			})
		}
		requireWithin(t, 4*stall, all.Wait) // one after the other they take ten
	}
	require.Greater(t, etcd.most.Load(), int32(1))
	require.LessOrEqual(t, etcd.most.Load(), int32(renewalStreams))
}

func TestStreamsThatEndUnheardArePacedForAllWhoAsk(t *testing.T) {
	t.Parallel()
	etcd, endpoint := startStallingEtcd(t, -1) // ends each stream at once
	s := newSession(t, newTarget([]string{endpoint}, defaultOptions()))
	s.conn.cur.noteRoundTrip(time.Second) // each request takes a stream of its own
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var all sync.WaitGroup
	for id := range clientv3.LeaseID(20) {
		all.Go(func() {
			_, _, err := s.Renew(ctx, id+1, false, 0)
			assert.ErrorContains(t, err, "no leader")
		})
	}
	all.Wait()
	require.LessOrEqual(t, etcd.opened.Load(), int32(8*12), "eight streams, a dozen times at most in three seconds")
}

func TestRenewalsOfAQuickEtcdShareAStream(t *testing.T) {
	t.Parallel()
	etcd, endpoint := startStallingEtcd(t, time.Millisecond)
	s := newSession(t, newTarget([]string{endpoint}, defaultOptions()))
	var all sync.WaitGroup
	for id := range clientv3.LeaseID(20) {
		all.Go(func() {
			_, _, err := s.Renew(t.Context(), id+1, false, defaultTTL*2/3)
			assert.NoError(t, err)
		})
	}
	all.Wait()
	require.LessOrEqual(t, etcd.most.Load(), int32(2), "a second where this machine is late")
}
