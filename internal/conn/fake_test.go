package conn

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/bubble"
	"github.com/discov-go/discov/internal/etcd"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// fakeEtcd is the members of an etcd in virtual time, reached through pipes in memory. They answer everything at once, but
// what the test decides otherwise.
type fakeEtcd struct {
	pb.UnimplementedKVServer
	pb.UnimplementedLeaseServer
	pb.UnimplementedWatchServer

	began     time.Time
	listeners map[string]*bufconn.Listener

	// before is asked about each request, and may keep it waiting or refuse it; a watch that it refuses is cancelled.
	before func(ctx context.Context, request any) error
	// watchErr ends a stream of watches; nil does not.
	watchErr func() error
	// roundTrip is that of connections to come.
	roundTrip time.Duration
	// mute means that renewals have no answer.
	mute atomic.Bool

	mu       sync.Mutex
	rev      int64
	behind   int64 // by how much its streams lag
	keys     map[string]*mvccpb.KeyValue
	ended    map[int64]bool // leases
	requests []received
	dials    []time.Duration
	refused  error // why it takes no connections, nil where it does
	conns    []*fakeConn
}

// testTTL is that of a fake lease.
const testTTL = 9 * time.Second

// received is a request that a fakeEtcd has had, and when.
type received struct {
	at   time.Duration
	what any
}

// inBubble runs a test against one fake member in virtual time.
func inBubble(t *testing.T, test func(*testing.T, *fakeEtcd)) {
	t.Helper()
	bubble.Test(t, func(t *testing.T) {
		f := &fakeEtcd{
			began:     time.Now(),
			listeners: map[string]*bufconn.Listener{},
			before:    func(context.Context, any) error { return nil },
			rev:       1,
			keys:      map[string]*mvccpb.KeyValue{},
		}
		f.serve(t, "one:2379")
		test(t, f)
	})
}

// serve makes the etcd answer at an address.
func (f *fakeEtcd) serve(t *testing.T, addr string) {
	l := bufconn.Listen(1 << 16)
	f.listeners[addr] = l
	s := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second})) // as etcd has it
	pb.RegisterKVServer(s, f)
	pb.RegisterLeaseServer(s, f)
	pb.RegisterWatchServer(s, f)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(l)
	}()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
}

// target is a Target with all members.
func (f *fakeEtcd) target() Target {
	to := Target{Tuning: &Tuning{Apply: func(config *clientv3.Config) error {
		config.DialOptions = append(config.DialOptions, grpc.WithContextDialer(f.dial))
		return nil
	}}}
	var addrs []string
	for addr := range f.listeners {
		addrs = append(addrs, addr)
	}
	return to.To(addrs)
}

func (f *fakeEtcd) conn(t *testing.T) *Conn {
	t.Helper()
	return newConn(t, f.target())
}

// usual are the bounds of a user as a Publisher has them.
var usual = Bounds{Call: 2500 * time.Millisecond, Patience: 1250 * time.Millisecond, MaxPatience: 2250 * time.Millisecond}

// boundless are those of one whose requests have the bounds of their contexts alone.
var boundless = Bounds{Patience: usual.Patience, MaxPatience: usual.MaxPatience}

// user returns a user of a connection of its own, which is ready. The test's time begins anew.
func (f *fakeEtcd) user(t *testing.T, bounds Bounds) *Caller {
	t.Helper()
	user := f.conn(t).Caller(bounds)
	require.NoError(t, user.Ready(t.Context()))
	time.Sleep(time.Minute) // so that connecting was long ago
	f.forget()
	f.began = time.Now()
	return &user
}

// keep keeps n leases alive, until the test is over.
// newLease returns a lease that was granted just now.
func newLease(id clientv3.LeaseID, ttl time.Duration) *etcd.Keepalive {
	lease := etcd.NewKeepalive(id, ttl, time.Now())
	lease.Bell = etcd.NewBell()
	return lease
}

func keep(t *testing.T, c *Conn, n int) (leases []*etcd.Keepalive) {
	t.Helper()
	for id := range n {
		lease := newLease(clientv3.LeaseID(id+1), testTTL)
		c.beats.KeepAlive(lease)
		t.Cleanup(func() { c.beats.LetGo(lease) })
		leases = append(leases, lease)
	}
	return leases
}

// since is how long the test has run.
func (f *fakeEtcd) since() time.Duration { return time.Since(f.began) }

// got returns when requests of a kind came.
func got[T any](f *fakeEtcd) (at []time.Duration, these []T) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, one := range f.requests {
		if what, ok := one.what.(T); ok {
			at, these = append(at, one.at), append(these, what)
		}
	}
	return at, these
}

// when returns when they came alone.
func when[T any](f *fakeEtcd) []time.Duration {
	at, _ := got[T](f)
	return at
}

// forget forgets the requests that came.
func (f *fakeEtcd) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests, f.dials = nil, nil
}

func (f *fakeEtcd) note(ctx context.Context, what any) error {
	f.mu.Lock()
	f.requests = append(f.requests, received{f.since(), what})
	before := f.before
	f.mu.Unlock()
	return before(ctx, what)
}

// meets says what becomes of each request from now on.
func (f *fakeEtcd) meets(before func(ctx context.Context, request any) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before = before
}

// meets are what becomes of some requests, one after the other.
type meets []func(context.Context) error

// meetsInTurn lets the requests of a kind meet these, and those that come after nothing.
func (f *fakeEtcd) meetsInTurn(these meets, isOne func(request any) bool) {
	f.meets(func(ctx context.Context, request any) error {
		if !isOne(request) {
			return nil
		}
		f.mu.Lock()
		var this func(context.Context) error
		if len(these) > 0 {
			this, these = these[0], these[1:]
		}
		f.mu.Unlock()
		if this == nil {
			return nil
		}
		return this(ctx)
	})
}

// takes lets an answer take so long, or for ever, where the request may be given up.
func takes(d time.Duration) func(context.Context) error {
	return func(ctx context.Context) error {
		if !after(ctx, d) {
			return status.FromContextError(ctx.Err()).Err()
		}
		return nil
	}
}

// fails refuses.
func fails(err error) func(context.Context) error {
	return func(context.Context) error { return err }
}

// put changes a key, without telling anybody.
func (f *fakeEtcd) put(key, value string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rev++
	f.keys[key] = &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), ModRevision: f.rev}
}

// setRev sets the revision, and by how much its streams lag.
func (f *fakeEtcd) setRev(rev, behind int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rev, f.behind = rev, behind
}

func (f *fakeEtcd) headerLocked() *pb.ResponseHeader { return &pb.ResponseHeader{Revision: f.rev} }

func (f *fakeEtcd) header() *pb.ResponseHeader {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.headerLocked()
}

func (f *fakeEtcd) streamHeader() *pb.ResponseHeader {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &pb.ResponseHeader{Revision: f.rev - f.behind}
}

func (f *fakeEtcd) rangeLocked(r *pb.RangeRequest) *pb.RangeResponse {
	response := &pb.RangeResponse{Header: f.headerLocked()}
	if kv := f.keys[string(r.GetKey())]; kv != nil {
		response.Kvs = append(response.Kvs, kv)
	}
	return response
}

// Range implements pb.KVServer.
func (f *fakeEtcd) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if err := f.note(ctx, r); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rangeLocked(r), nil
}

// Put implements pb.KVServer.
func (f *fakeEtcd) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := f.note(ctx, r); err != nil {
		return nil, err
	}
	f.put(string(r.GetKey()), string(r.GetValue()))
	f.mu.Lock()
	f.keys[string(r.GetKey())].Lease = r.GetLease()
	f.mu.Unlock()
	return &pb.PutResponse{Header: f.header()}, nil
}

// Txn implements pb.KVServer. It reads.
func (f *fakeEtcd) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := f.note(ctx, r); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	response := &pb.TxnResponse{Header: f.headerLocked(), Succeeded: true}
	for _, op := range r.GetSuccess() {
		response.Responses = append(response.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{
			ResponseRange: f.rangeLocked(op.GetRequestRange()),
		}})
	}
	return response, nil
}

// LeaseGrant implements pb.LeaseServer.
func (f *fakeEtcd) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	if err := f.note(ctx, r); err != nil {
		return nil, err
	}
	return &pb.LeaseGrantResponse{Header: f.header(), ID: r.GetID(), TTL: r.GetTTL()}, nil
}

// LeaseRevoke implements pb.LeaseServer.
func (f *fakeEtcd) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	return &pb.LeaseRevokeResponse{Header: f.header()}, f.note(ctx, r)
}

// LeaseKeepAlive implements pb.LeaseServer.
func (f *fakeEtcd) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := f.note(stream.Context(), r); err != nil {
			return err
		}
		if f.mute.Load() {
			continue
		}
		if err := stream.Send(f.renewed(r.GetID())); err != nil {
			return err
		}
	}
}

func (f *fakeEtcd) renewed(id int64) *pb.LeaseKeepAliveResponse {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := &pb.LeaseKeepAliveResponse{Header: &pb.ResponseHeader{Revision: f.rev - f.behind}, ID: id}
	if !f.ended[id] {
		answer.TTL = int64(testTTL / time.Second)
	}
	return answer
}

// Watch implements pb.WatchServer. Its watches tell nothing.
func (f *fakeEtcd) Watch(stream pb.Watch_WatchServer) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		create := r.GetCreateRequest()
		if create == nil {
			f.note(stream.Context(), r)
			continue
		}
		f.mu.Lock()
		if f.watchErr != nil {
			if err := f.watchErr(); err != nil {
				f.mu.Unlock()
				return err
			}
		}
		f.mu.Unlock()
		response := &pb.WatchResponse{Header: f.streamHeader(), WatchId: create.GetWatchId(), Created: true}
		if err := f.note(stream.Context(), create); err != nil {
			response.Canceled, response.CancelReason = true, err.Error()
		}
		if err := stream.Send(response); err != nil {
			return err
		}
	}
}

func TestAFakeEtcdAnswersInVirtualTime(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		c := f.conn(t).Caller(Bounds{Call: time.Second, Patience: time.Second, MaxPatience: time.Second})
		f.put("k", "v")
		now, rev, err := c.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, "v", now.Value)
		require.EqualValues(t, 2, rev)
		require.Len(t, when[*pb.RangeRequest](f), 1)
		require.Zero(t, f.since())
	})
}
