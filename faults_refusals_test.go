package discov_test

import (
	"context"
	"maps"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// An etcd that refuses for a while: a full disk, corrupt data, a limit of the rate. And what an outage is told as.

func TestAFullDiskKeepsWhatIsRegisteredAndGivesBackWhatWasLostAtOnce(t *testing.T) {
	t.Parallel()
	s := onServer(t)
	pubs := s.publishSeveral(4, discov.WithTTL(2*time.Second))
	kept, lost, paused, stopped := pubs[0], pubs[1], pubs[2], pubs[3]
	s.server.NoSpace(t)
	s.revoke(lost.Status().Lease)

	require.NoError(t, paused.pauseIn(defaultTimeout))
	require.False(t, s.Present(t, paused.key()))
	require.NoError(t, stopped.stopIn(defaultTimeout))
	require.False(t, s.Present(t, stopped.key()))
	new := s.newInstance("a:5", discov.WithId(5), discov.WithTTL(2*time.Second))
	require.ErrorIs(t, s.bounded(defaultTimeout, new.start), rpctypes.ErrNoSpace)
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	require.ErrorIs(t, s.bounded(time.Second, func() error { return kept.Update(short, "new") }), rpctypes.ErrNoSpace)
	require.Error(t, s.bounded(time.Second, func() error { return paused.ResumeContext(short) }))

	before := s.server.Requests()
	most := s.mostLeases(5 * time.Second)
	t.Logf("figure: on a full disk for 5 s: %d leases at most, asked %v by three Publishers", most, grown(before, s.server.Requests()))
	assert.LessOrEqual(t, most, 3)
	s.server.Disarm(t)
	s.figure("disarmed", s.requireTrue(s.begin("disarmed"), atOnce, kept, lost, paused))
	s.requireNeverAbsent(kept)
}

func TestCorruptDataOnOneMemberOfThreeCostNoKey(t *testing.T) {
	t.Parallel()
	s := onCluster(t)
	pubs := s.publishSeveral(3, discov.WithTTL(2*time.Second))
	s.cluster.Corrupt(t)
	time.Sleep(2500 * time.Millisecond)
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	require.ErrorIs(t, s.bounded(time.Second, func() error { return pubs[0].Update(short, "new") }), rpctypes.ErrCorrupt)
	err := s.bounded(time.Second, func() error { return pubs[1].PauseContext(short) })
	t.Logf("figure: Pause on corrupt data: %v", err)
	time.Sleep(2500 * time.Millisecond)
	s.cluster.Disarm(t)
	s.figure("right again", s.requireTrue(s.begin("disarmed"), atOnce, pubs[0], pubs[2]))
	s.requireNeverAbsent(pubs[0], pubs[2])
}

func TestAnOutageIsNamedByItsCause(t *testing.T) {
	t.Parallel()
	s := onServer(t)
	pub := s.publish("a:1", withID(2*time.Second)...)
	s.server.Stop()
	etcdtest.RequireSoon(t, 5*time.Second, func() bool {
		err := pub.Status().Err
		return err != nil && strings.Contains(err.Error(), "connection refused")
	}, "the error does not tell that the connection is refused")
	for range 20 { // and goes on to tell
		time.Sleep(200 * time.Millisecond)
		require.ErrorContains(t, pub.Status().Err, "connection refused")
	}
	s.server.Start()
}

// errRateLimit is what a proxy, or etcd's gRPC on ENHANCE_YOUR_CALM, answers to too many requests.
var errRateLimit = status.Error(codes.ResourceExhausted, "rate limit exceeded")

func TestALimitOfTheRateIsTriedAgain(t *testing.T) {
	t.Parallel()
	const some = 3
	s, limit := onPath(t), &refusals{err: errRateLimit}
	pub := s.newInstance("a:1", discov.WithId(7), discov.Dialling(limit.option()))
	requireRefused := func(what string) {
		t.Helper()
		n, of := limit.refused()
		require.Equal(t, some, n, "%s: %v", what, of)
	}

	limit.refuse(some, "Put", "Txn", "Range")
	require.NoError(t, s.bounded(defaultTimeout, pub.start))
	requireRefused("first registration")
	s.requireTrue(time.Now(), 0, pub)

	limit.refuse(some, "LeaseGrant")
	s.revoke(pub.Status().Lease)
	s.requireTrue(s.begin("revoked"), defaultTimeout, pub)
	requireRefused("another lease")

	limit.refuse(some, "Put", "Txn")
	require.NoError(t, pub.updateIn(defaultTimeout, "a:2"))
	requireRefused("Update")
	s.requireTrue(time.Now(), 0, pub)

	limit.refuse(some, "Range", "Txn")
	s.path.Reset() // so that the key is read, and watched anew
	reset := s.begin("reset")
	etcdtest.RequireSoon(t, defaultTimeout, func() bool { n, _ := limit.refused(); return n == some }, "reads that are limited")
	s.requireTrue(reset, defaultTimeout, pub)
	etcdtest.RequireSoon(t, defaultTimeout, func() bool { return pub.Status().Err == nil }, "no error is left:\n%s", pub)
	require.Equal(t, "a:2", pub.Status().Value)

	limit.refuse(some, "LeaseRevoke")
	require.NoError(t, pub.pauseIn(defaultTimeout))
	requireRefused("Pause")
	s.requireGone(time.Now(), 0)
}

// refusals answer some requests in etcd's place.
type refusals struct {
	err error

	mu     sync.Mutex
	left   int             // how many
	of     map[string]bool // methods by short name
	undone map[string]int  // how many were refused, by method
}

// refuse refuses the next n requests of these methods.
func (r *refusals) refuse(n int, methods ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left, r.of, r.undone = n, map[string]bool{}, map[string]int{}
	for _, method := range methods {
		r.of[method] = true
	}
}

// refused returns how many requests of each method were refused since the last refuse.
func (r *refusals) refused() (total int, of map[string]int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.undone {
		total += n
	}
	return total, maps.Clone(r.undone)
}

func (r *refusals) option() grpc.DialOption {
	return grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, full string, request, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			method := path.Base(full)
			r.mu.Lock()
			refused := r.left > 0 && r.of[method]
			if refused {
				r.left--
				r.undone[method]++
			}
			r.mu.Unlock()
			if refused {
				return r.err
			}
			return invoke(ctx, full, request, reply, cc, opts...)
		})
}
