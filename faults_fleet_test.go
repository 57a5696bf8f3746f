package discov_test

import (
	"context"
	"errors"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A fleet is many Publishers on one connection.
type fleet struct {
	pubs  []*discov.Publisher
	log   *discov.LogLines
	first time.Duration // that it took to register them all
	meter *meter
}

// registerFleet registers so many at once.
func registerFleet(t *testing.T, size int, etcd *etcdtest.Server, endpoints []string, opts ...discov.PubOption) *fleet {
	t.Helper()
	f := &fleet{log: &discov.LogLines{}, meter: newMeter(t)}
	opts = append(opts, f.log.Option())
	for i := range size {
		f.pubs = append(f.pubs, discov.NewPublisher(endpoints, "fleet", "v", append([]discov.PubOption{discov.WithId(int64(i + 1))}, opts...)...))
	}
	t.Cleanup(func() {
		f.each(func(p *discov.Publisher) error { p.Stop(); return nil })
		if !t.Failed() {
			requireNoGoroutines(t)
		}
	})
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // for a machine with a lot to do
	defer cancel()
	var errs []error
	pprof.Do(ctx, pprof.Labels("scene", t.Name()), func(ctx context.Context) {
		errs = f.each(func(p *discov.Publisher) error { return p.KeepAliveContext(ctx) })
	})
	f.first = time.Since(began)
	require.Empty(t, errs, "registering %d at once", size)
	require.Equal(t, size, countWithin(t, etcd, "fleet/", 10*time.Second)) // an etcd with many watches to make
	t.Logf("figure: %d registered first in %v", size, f.first.Round(time.Millisecond))
	return f
}

// each makes the call on all at once, and returns the first few errors.
func (f *fleet) each(call func(*discov.Publisher) error) (errs []error) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, p := range f.pubs {
		all.Go(func() {
			if err := call(p); err != nil {
				mu.Lock()
				defer mu.Unlock()
				if len(errs) < 3 {
					errs = append(errs, err)
				}
			}
		})
	}
	all.Wait()
	return errs
}

// countOf is how many keys there are, or -1 where etcd does not answer in a second.
func countOf(t testing.TB, etcd *etcdtest.Server, prefix string) int {
	t.Helper()
	return countWithin(t, etcd, prefix, time.Second)
}

func countWithin(t testing.TB, etcd *etcdtest.Server, prefix string, within time.Duration) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	resp, err := etcd.Client(t).Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return -1
	}
	return int(resp.Count)
}

// requireBack waits until all are back, and judges time, log lines, leases and authentications.
func (f *fleet) requireBack(t *testing.T, etcd *etcdtest.Server, what string, since time.Time, within time.Duration, before map[string]int) {
	t.Helper()
	etcdtest.RequireSoon(t, time.Minute, func() bool { return countOf(t, etcd, "fleet/") == len(f.pubs) }, "%s: not all are back", what)
	took := time.Since(since)
	etcdtest.RequireSoon(t, 5*time.Second, func() bool {
		for _, p := range f.pubs {
			if p.Status().State != discov.StatePublished {
				return false
			}
		}
		return true
	}, "%s: not all know that they are back", what)
	lines := f.log.Take()
	serious := slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return strings.Contains(line, "level=INFO") })
	asked := grown(before, etcd.Requests())
	t.Logf("figure: %s: %d back in %v (first %v); %d lines at Warn, %d in all; asked %v",
		what, len(f.pubs), took.Round(time.Millisecond), f.first.Round(time.Millisecond), len(serious), len(lines), asked)
	assert.LessOrEqual(t, took, within+f.meter.allowance(since, since.Add(took)), "%s: too slow", what)
	// A burst of twenty, and one a minute after it.
	assert.LessOrEqual(t, len(serious), 25, "%s: an error storm in the log, such as %s", what, strings.Join(serious[:min(5, len(serious))], "\n"))
	assert.LessOrEqual(t, asked["Authenticate"], 3, "%s: more than one authentication burst", what)
	etcdtest.RequireSoon(t, 5*time.Second, func() bool { return etcd.Leases(t) == len(f.pubs) }, "%s: leases", what)
	assert.LessOrEqual(t, etcd.OpenStreams("Watch"), 1)
	assert.LessOrEqual(t, etcd.OpenStreams("LeaseKeepAlive"), 8)
}

// revokeAll revokes every lease, as fast as etcd lets it. A stray may be gone by then: its owner revokes it, too.
func revokeAll(t testing.TB, etcd *etcdtest.Server) {
	t.Helper()
	client := etcd.Client(t)
	ids := make(chan clientv3.LeaseID)
	var workers sync.WaitGroup
	for range 64 {
		workers.Go(func() {
			for id := range ids {
				if _, err := client.Revoke(t.Context(), id); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
					t.Errorf("revoke: %v", err)
				}
			}
		})
	}
	for _, id := range etcd.LeaseIDs(t) {
		ids <- id
	}
	close(ids)
	workers.Wait()
}

// loseAll takes all leases from a fleet, twice.
func loseAll(t *testing.T, etcd *etcdtest.Server, f *fleet) {
	t.Helper()
	f.log.Take()
	etcdtest.RequireSoon(t, 10*time.Second, func() bool { return etcd.Watchers() == len(f.pubs) }, "all are watched")
	before := etcd.Requests()
	revokeAll(t, etcd)
	f.requireBack(t, etcd, "revoke", time.Now(), 2*f.first, before)

	before = etcd.Requests()
	etcd.Wipe()
	// The second is for gRPC's reconnect, which is the same for one as for a thousand.
	f.requireBack(t, etcd, "wipe", time.Now(), 2*f.first+atOnce, before)
}

func TestAThousandPublishersThatLoseAllLeasesAreBackInTwiceTheTimeOfTheirRegistration(t *testing.T) {
	etcd := etcdtest.Start(t)
	loseAll(t, etcd, registerFleet(t, 1000, etcd, etcd.Endpoints()))
}

func TestManyPublishersThatLoseAllLeasesAreBackAsFastOverARoundTripOfTenMilliseconds(t *testing.T) {
	etcd := etcdtest.Start(t)
	path := etcdtest.NewPath(t, etcd.Endpoints()[0])
	path.Latency(5 * time.Millisecond)
	loseAll(t, etcd, registerFleet(t, 300, etcd, []string{path.Endpoint()}))
}

func TestManyPublishersWithAnAccountThatLoseAllLeasesAuthenticateOnce(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.WithAuth("svc", "pass"))
	before := etcd.Requests()["Authenticate"]
	f := registerFleet(t, 300, etcd, etcd.Endpoints(), withAccount)
	assert.LessOrEqual(t, etcd.Requests()["Authenticate"]-before, 2, "first registration")
	loseAll(t, etcd, f)
}
