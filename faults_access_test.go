package discov_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Faults in the way in: latency, resets, alarms, accounts, certificates, the caller's own client, and many Publishers
// on one connection. Figures are logged; see them with -v.

const (
	defaultTTL     = 10 * time.Second
	defaultTimeout = 5 * time.Second
)

// unstarted is a silent Publisher that the end of the test stops.
func unstarted(t testing.TB, endpoints []string, key string, opts ...discov.PubOption) *discov.Publisher {
	t.Helper()
	requireNothingRuns(t)
	p := discov.NewPublisher(endpoints, key, "v", append([]discov.PubOption{discov.WithLogger(slog.New(slog.DiscardHandler))}, opts...)...)
	t.Cleanup(p.Stop)
	return p
}

// start is KeepAlive, with what it starts labelled for labelled.
func start(t testing.TB, p *discov.Publisher) error { return startWithin(context.Background(), t, p) }

func startWithin(ctx context.Context, t testing.TB, p *discov.Publisher) (err error) {
	pprof.Do(ctx, pprof.Labels("scene", t.Name()), func(ctx context.Context) { err = p.KeepAliveContext(ctx) })
	return err
}

// withPublishers are the names of the tests that have Publishers now.
var withPublishers sync.Map

// requireNothingRuns demands at the end of the test that nothing runs any more that its Publishers have started. It is
// to be called before each of them is made.
func requireNothingRuns(t testing.TB) {
	if _, known := withPublishers.LoadOrStore(t.Name(), true); known {
		return
	}
	t.Cleanup(func() {
		withPublishers.Delete(t.Name())
		if !t.Failed() {
			etcdtest.RequireSoon(t, 3*time.Second, func() bool { return labelled(t.Name()) == "" }, "goroutines are left")
		}
	})
}

// registered is unstarted, and registered.
func registered(t testing.TB, endpoints []string, key string, opts ...discov.PubOption) *discov.Publisher {
	t.Helper()
	p := unstarted(t, endpoints, key, opts...)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second) // a short timeout is for the fault to meet
	defer cancel()
	require.NoError(t, startWithin(ctx, t, p))
	return p
}

// severalRegistered are n of them, under key/1 to key/n.
func severalRegistered(t testing.TB, n int, endpoints []string, key string, opts ...discov.PubOption) (pubs []*discov.Publisher, keys []string) {
	t.Helper()
	for i := range n {
		pubs = append(pubs, registered(t, endpoints, key, append([]discov.PubOption{discov.WithId(int64(i + 1))}, opts...)...))
		keys = append(keys, fmt.Sprintf("%s/%d", key, i+1))
	}
	return pubs, keys
}

// requireBack waits for the key, and fails the test where it took longer than atOnce since. Time in which etcd was slow
// to answer the observer, as on a machine with a lot to do, is etcd's.
func requireBack(t testing.TB, o *etcdtest.Observer, key string, since time.Time) {
	t.Helper()
	var slowest time.Duration
	etcdtest.RequireSoon(t, 30*time.Second, func() bool {
		asked := time.Now()
		present := o.Present(t, key)
		slowest = max(slowest, time.Since(asked))
		return present
	}, key+" is absent")
	took := time.Since(since)
	t.Logf("figure: %s was back after %v; etcd took %v to answer", key, took.Round(time.Millisecond), slowest.Round(time.Millisecond))
	require.LessOrEqual(t, took, atOnce+4*slowest, "%s was not back at once", key)
}

// mostLeases returns the most leases that were there at one time in the time given.
func mostLeases(t testing.TB, of interface{ Leases(testing.TB) int }, during time.Duration) int {
	t.Helper()
	most := 0
	for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		most = max(most, of.Leases(t))
	}
	return most
}

// requireIn fails the test where the call outlasts its bound, and returns its error.
func requireIn(t testing.TB, bound time.Duration, what string, call func() error) error {
	t.Helper()
	began := time.Now()
	err := call()
	took := time.Since(began)
	t.Logf("figure: %s took %v: %v", what, took.Round(time.Millisecond), err)
	require.LessOrEqual(t, took, bound+callSlack, "%s outlasted its bound", what)
	return err
}

// ---- 1,000 Publishers ----

const fleetSize = 1000

// A fleet is many Publishers on one connection.
type fleet struct {
	pubs  []*discov.Publisher
	log   *discov.LogLines
	first time.Duration // that it took to register them all
	meter *meter
}

// registerFleet registers all at once.
func registerFleet(t *testing.T, etcd *etcdtest.Server, endpoints []string, opts ...discov.PubOption) *fleet {
	t.Helper()
	f := &fleet{log: &discov.LogLines{}, meter: newMeter(t)}
	opts = append(opts, f.log.Option())
	for i := range fleetSize {
		f.pubs = append(f.pubs, unstarted(t, endpoints, "fleet", append([]discov.PubOption{discov.WithId(int64(i + 1))}, opts...)...))
	}
	// A thousand Stops one after the other take as many round trips.
	t.Cleanup(func() { f.each(func(p *discov.Publisher) error { p.Stop(); return nil }) })
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // for a machine with a lot to do
	defer cancel()
	var errs []error
	pprof.Do(ctx, pprof.Labels("scene", t.Name()), func(ctx context.Context) {
		errs = f.each(func(p *discov.Publisher) error { return p.KeepAliveContext(ctx) })
	})
	f.first = time.Since(began)
	require.Empty(t, errs, "registering %d at once", fleetSize)
	require.Equal(t, fleetSize, countWithin(t, etcd, "fleet/", 10*time.Second)) // an etcd with a thousand watches to make
	t.Logf("figure: %d registered first in %v", fleetSize, f.first.Round(time.Millisecond))
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

// requireFleetBack waits until all are back, and judges time, log lines, leases and authentications.
func (f *fleet) requireBack(t *testing.T, etcd *etcdtest.Server, what string, since time.Time, within time.Duration, before map[string]int) {
	t.Helper()
	etcdtest.RequireSoon(t, time.Minute, func() bool { return countOf(t, etcd, "fleet/") == fleetSize }, "%s: not all are back", what)
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
	now := etcd.Requests()
	t.Logf("figure: %s: %d back in %v (first %v); %d lines at Warn, %d in all; %d Authenticate, %d LeaseGrant, %d Put, %d Txn, %d Range, %d Watch.create",
		what, fleetSize, took.Round(time.Millisecond), f.first.Round(time.Millisecond), len(serious), len(lines),
		now["Authenticate"]-before["Authenticate"], now["LeaseGrant"]-before["LeaseGrant"], now["Put"]-before["Put"],
		now["Txn"]-before["Txn"], now["Range"]-before["Range"], now["Watch.create"]-before["Watch.create"])
	assert.LessOrEqual(t, took, within+f.meter.allowance(since, since.Add(took)), "%s: too slow", what)
	assert.LessOrEqual(t, len(serious), 100, "%s: an error storm in the log, such as %s", what, strings.Join(serious[:min(5, len(serious))], "\n"))
	assert.LessOrEqual(t, now["Authenticate"]-before["Authenticate"], 3, "%s: more than one authentication burst", what)
	etcdtest.RequireSoon(t, 5*time.Second, func() bool { return etcd.Leases(t) == fleetSize }, "%s: leases", what)
	assert.LessOrEqual(t, etcd.OpenStreams("Watch"), 1)
	assert.LessOrEqual(t, etcd.OpenStreams("LeaseKeepAlive"), 8)
}

// revokeAll revokes every lease, as fast as etcd lets it.
func revokeAll(t testing.TB, etcd *etcdtest.Server) {
	t.Helper()
	client := etcd.Client(t)
	resp, err := client.Leases(t.Context())
	require.NoError(t, err)
	ids := make(chan clientv3.LeaseID)
	var workers sync.WaitGroup
	for range 64 {
		workers.Go(func() {
			for id := range ids {
				if _, err := client.Revoke(t.Context(), id); err != nil {
					t.Errorf("revoke: %v", err)
				}
			}
		})
	}
	for _, lease := range resp.Leases {
		ids <- lease.ID
	}
	close(ids)
	workers.Wait()
}

// loseAll takes all leases from a fleet, twice.
func loseAll(t *testing.T, etcd *etcdtest.Server, f *fleet) {
	t.Helper()
	f.log.Take()
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
	loseAll(t, etcd, registerFleet(t, etcd, etcd.Endpoints()))
}

func TestAThousandPublishersThatLoseAllLeasesAreBackAsFastOverARoundTripOfTenMilliseconds(t *testing.T) {
	etcd := etcdtest.Start(t)
	path := etcdtest.NewPath(t, etcd.Endpoints()[0])
	path.Latency(5 * time.Millisecond)
	loseAll(t, etcd, registerFleet(t, etcd, []string{path.Endpoint()}))
}

func TestAThousandPublishersWithAnAccountThatLoseAllLeasesAuthenticateOnce(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.WithAuth("svc", "pass"))
	before := etcd.Requests()["Authenticate"]
	f := registerFleet(t, etcd, etcd.Endpoints(), discov.WithPubEtcdAccount("svc", "pass"))
	assert.LessOrEqual(t, etcd.Requests()["Authenticate"]-before, 2, "first registration")
	loseAll(t, etcd, f)
}

// ---- Resets ----

func TestResetsEveryQuarterSecondNeverCostAKey(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ttl    time.Duration
		secure bool
	}{
		"the default TTL":                      {ttl: defaultTTL},
		"the least TTL":                        {ttl: 2 * time.Second},
		"the least TTL with TLS and account":   {ttl: 2 * time.Second, secure: true},
		"the default TTL with TLS and account": {ttl: defaultTTL, secure: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var serverOpts []etcdtest.Option
			opts := []discov.PubOption{discov.WithTTL(c.ttl)}
			if c.secure {
				ca := etcdtest.NewCA(t)
				cert := ca.Issue(t)
				serverOpts = append(serverOpts, etcdtest.WithServerTLS(ca.Issue(t)), etcdtest.WithAuth("svc", "pass"))
				opts = append(opts, discov.WithPubEtcdTLS(cert.CertFile, cert.KeyFile, cert.CAFile, false), discov.WithPubEtcdAccount("svc", "pass"))
			}
			etcd := etcdtest.Start(t, serverOpts...)
			path := etcdtest.NewPath(t, etcd.Endpoints()[0])
			const n = 5
			pubs, keys := severalRegistered(t, n, []string{path.Endpoint()}, "svc", opts...)
			o := etcdtest.Observe(t, etcd, "svc/")
			before, most := etcd.Requests(), 0
			for range 40 {
				path.Reset()
				most = max(most, mostLeases(t, etcd, 250*time.Millisecond))
			}
			after := etcd.Requests()
			for i, key := range keys {
				o.RequireNeverAbsent(t, key)
				require.NoError(t, requireIn(t, defaultTimeout, "Update", func() error { return pubs[i].Update(t.Context(), "new") }))
			}
			t.Logf("figure: %d leases at most; in 10 s %d Range, %d Put, %d Txn, %d LeaseGrant, %d renewals, %d Authenticate", most,
				after["Range"]-before["Range"], after["Put"]-before["Put"], after["Txn"]-before["Txn"], after["LeaseGrant"]-before["LeaseGrant"],
				after["LeaseKeepAlive.msg"]-before["LeaseKeepAlive.msg"], after["Authenticate"]-before["Authenticate"])
			assert.Equal(t, n, most, "leases while resetting")
			assert.Zero(t, after["Put"]-before["Put"]+after["Txn"]-before["Txn"], "writes of keys that were right")
			etcd.RequireLeases(t, n)
		})
	}
}

// ---- Latency ----

// A farPath is a path whose latency is what it says: chunks are on their way all at once, where those of etcdtest.Path
// wait for one another, which makes half as much again of a round trip.
type farPath struct {
	listener net.Listener
	each     atomic.Int64 // the latency each way, a time.Duration
	dials    atomic.Int64
	carrying sync.WaitGroup
}

func newFarPath(t *testing.T, target string, each time.Duration) *farPath {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	p := &farPath{listener: listener}
	p.each.Store(int64(each))
	target = strings.TrimPrefix(target, "https://")
	p.carrying.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			p.dials.Add(1)
			far, err := net.Dial("tcp4", target)
			if err != nil {
				near.Close()
				continue
			}
			p.carrying.Go(func() { p.carry(far, near) })
			p.carrying.Go(func() { p.carry(near, far) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		p.carrying.Wait()
	})
	return p
}

// carry takes all from one end to the other, and the end of it too.
func (p *farPath) carry(to, from net.Conn) {
	type chunk struct {
		bytes []byte
		due   time.Time
	}
	underway := make(chan chunk, 4096)
	p.carrying.Go(func() {
		defer to.Close()
		for c := range underway {
			time.Sleep(time.Until(c.due))
			to.Write(c.bytes) // where this fails, the other direction ends too
		}
	})
	defer close(underway)
	for {
		buf := make([]byte, 32<<10)
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		underway <- chunk{buf[:n], time.Now().Add(time.Duration(p.each.Load()))}
	}
}

// A farEtcd is one with latency, and what is asked of it.
type farEtcd struct {
	each, timeout, ttl time.Duration
	tls, account       bool
}

func TestLatencyLosesNoKeyAndKeepsBounds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]farEtcd{
		"50 ms each way":           {each: 50 * time.Millisecond, timeout: defaultTimeout, ttl: defaultTTL},
		"50 ms each way, TTL 2 s":  {each: 50 * time.Millisecond, timeout: defaultTimeout, ttl: 2 * time.Second},
		"500 ms each way":          {each: 500 * time.Millisecond, timeout: defaultTimeout, ttl: defaultTTL},
		"500 ms each way, TLS":     {each: 500 * time.Millisecond, timeout: defaultTimeout, ttl: defaultTTL, tls: true},
		"500 ms each way, account": {each: 500 * time.Millisecond, timeout: defaultTimeout, ttl: defaultTTL, account: true},
		"500 ms each way, TTL 5 s": {each: 500 * time.Millisecond, timeout: defaultTimeout, ttl: 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.requireKept(t)
		})
	}
}

// requireKept registers over the latency, and demands that the key is kept and that every call does its work in its bound.
func (c farEtcd) requireKept(t *testing.T) {
	t.Helper()
	var serverOpts []etcdtest.Option
	opts := []discov.PubOption{discov.WithTTL(c.ttl), discov.WithTimeout(c.timeout), discov.WithId(1)}
	if c.tls {
		ca := etcdtest.NewCA(t)
		cert := ca.Issue(t)
		serverOpts = append(serverOpts, etcdtest.WithServerTLS(ca.Issue(t)))
		opts = append(opts, discov.WithPubEtcdTLS(cert.CertFile, cert.KeyFile, cert.CAFile, false))
	}
	if c.account {
		serverOpts = append(serverOpts, etcdtest.WithAuth("svc", "pass"))
		opts = append(opts, discov.WithPubEtcdAccount("svc", "pass"))
	}
	etcd := etcdtest.Start(t, serverOpts...)
	path := newFarPath(t, etcd.Endpoints()[0], c.each)
	o := etcdtest.Observe(t, etcd, "svc/")
	p := unstarted(t, []string{path.listener.Addr().String()}, "svc", opts...)
	require.NoError(t, requireIn(t, c.timeout, "KeepAlive", func() error { return start(t, p) }))
	require.True(t, o.Present(t, "svc/1"))
	before, dialled := etcd.Requests(), path.dials.Load()
	time.Sleep(c.ttl*5/4 + time.Second)
	o.RequireNeverAbsent(t, "svc/1")
	require.Greater(t, time.Until(p.Status().Until), time.Duration(0), "the lease is thought to have ended")
	after := etcd.Requests()
	t.Logf("figure: in %v %d renewals, %d Range, %d Watch, %d LeaseKeepAlive; %d dials", c.ttl*5/4+time.Second,
		after["LeaseKeepAlive.msg"]-before["LeaseKeepAlive.msg"], after["Range"]-before["Range"], after["Watch"]-before["Watch"],
		after["LeaseKeepAlive"]-before["LeaseKeepAlive"], path.dials.Load()-dialled)
	assert.LessOrEqual(t, path.dials.Load()-dialled, int64(1), "a link that is slow is dialled again and again")
	withContext := func(call func(context.Context) error) func() error {
		return func() error { return call(t.Context()) }
	}
	require.NoError(t, requireIn(t, c.timeout, "Update", func() error { return p.Update(t.Context(), "new") }))
	o.RequireNeverAbsent(t, "svc/1")
	require.NoError(t, requireIn(t, c.timeout, "Pause", withContext(p.PauseContext)))
	require.False(t, o.Present(t, "svc/1"), "paused")
	require.NoError(t, requireIn(t, c.timeout, "Resume", withContext(p.ResumeContext)))
	require.True(t, o.Present(t, "svc/1"), "resumed")
	require.NoError(t, requireIn(t, c.timeout, "Stop", withContext(p.StopContext)))
	require.False(t, o.Present(t, "svc/1"), "stopped")
	etcd.RequireLeases(t, 0)
}

func TestLatencyThatComesAndGoesLosesNoKey(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	path := etcdtest.NewPath(t, etcd.Endpoints()[0])
	_, keys := severalRegistered(t, 5, []string{path.Endpoint()}, "svc", discov.WithTTL(5*time.Second))
	o := etcdtest.Observe(t, etcd, "svc/")
	for i := range 8 {
		path.Latency(time.Duration(i%2) * 400 * time.Millisecond)
		time.Sleep(1500 * time.Millisecond)
	}
	path.Latency(0)
	for _, key := range keys {
		o.RequireNeverAbsent(t, key)
	}
}

// ---- Alarms ----

func TestAFullDiskKeepsWhatIsRegisteredAndGivesBackWhatWasLostAtOnce(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	kept := registered(t, etcd.Endpoints(), "svc", discov.WithId(1), discov.WithTTL(2*time.Second))
	lost := registered(t, etcd.Endpoints(), "svc", discov.WithId(2), discov.WithTTL(2*time.Second))
	paused := registered(t, etcd.Endpoints(), "svc", discov.WithId(3), discov.WithTTL(2*time.Second))
	stopped := registered(t, etcd.Endpoints(), "svc", discov.WithId(4), discov.WithTTL(2*time.Second))
	o := etcdtest.Observe(t, etcd, "svc/")
	etcd.NoSpace(t)
	_, err := etcd.Client(t).Revoke(t.Context(), lost.Status().Lease)
	require.NoError(t, err)

	require.NoError(t, requireIn(t, defaultTimeout, "Pause on a full disk", func() error { return paused.PauseContext(t.Context()) }))
	require.False(t, o.Present(t, "svc/3"))
	require.NoError(t, requireIn(t, defaultTimeout, "Stop on a full disk", func() error { return stopped.StopContext(t.Context()) }))
	require.False(t, o.Present(t, "svc/4"))
	new := unstarted(t, etcd.Endpoints(), "svc", discov.WithId(5), discov.WithTTL(2*time.Second))
	err = requireIn(t, defaultTimeout, "KeepAlive on a full disk", new.KeepAlive)
	require.ErrorIs(t, err, rpctypes.ErrNoSpace)
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err = requireIn(t, time.Second, "Update on a full disk", func() error { return kept.Update(short, "new") })
	require.ErrorIs(t, err, rpctypes.ErrNoSpace)
	err = requireIn(t, defaultTimeout, "Resume on a full disk", func() error { return paused.ResumeContext(short) })
	require.Error(t, err)

	before := etcd.Requests()
	most := mostLeases(t, etcd, 5*time.Second)
	after := etcd.Requests()
	t.Logf("figure: on a full disk for 5 s: %d leases at most, %d LeaseGrant, %d Put, %d Txn of three Publishers", most,
		after["LeaseGrant"]-before["LeaseGrant"], after["Put"]-before["Put"], after["Txn"]-before["Txn"])
	assert.LessOrEqual(t, most, 3)
	o.RequireNeverAbsent(t, "svc/1")
	etcd.Disarm(t)
	disarmed := time.Now()
	requireBack(t, o, "svc/2", disarmed)
	requireBack(t, o, "svc/3", disarmed)
	etcdtest.RequireSoon(t, time.Until(disarmed.Add(atOnce)), func() bool {
		kv, _ := o.KV(t, "svc/1")
		return kv.Value == "new"
	}, "the value that was set on a full disk")
	o.RequireNeverAbsent(t, "svc/1")
	etcd.RequireLeases(t, 3)
}

func TestCorruptDataOnOneMemberOfThreeCostNoKey(t *testing.T) {
	t.Parallel()
	cluster := etcdtest.StartCluster(t, 3)
	pubs, keys := severalRegistered(t, 3, cluster.Endpoints(), "svc", discov.WithTTL(2*time.Second))
	o := etcdtest.Observe(t, cluster, "svc/")
	cluster.Corrupt(t)
	time.Sleep(2500 * time.Millisecond)
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := requireIn(t, time.Second, "Update on corrupt data", func() error { return pubs[0].Update(short, "new") })
	require.ErrorIs(t, err, rpctypes.ErrCorrupt)
	err = requireIn(t, time.Second, "Pause on corrupt data", func() error { return pubs[1].PauseContext(short) })
	t.Logf("figure: Pause on corrupt data: %v", err)
	time.Sleep(2500 * time.Millisecond)
	cluster.Disarm(t)
	disarmed := time.Now()
	etcdtest.RequireSoon(t, atOnce, func() bool {
		kv, _ := o.KV(t, keys[0])
		return kv.Value == "new"
	}, "the value that was set on corrupt data")
	etcdtest.RequireSoon(t, time.Until(disarmed.Add(atOnce)), func() bool { return !o.Present(t, keys[1]) }, "what was paused is still there")
	t.Logf("figure: right again %v after the alarm", time.Since(disarmed).Round(time.Millisecond))
	o.RequireNeverAbsent(t, keys[0])
	o.RequireNeverAbsent(t, keys[2])
	cluster.RequireLeases(t, 2)
}

// ---- Accounts ----

func TestTwentyPausesWithAnExpiringTokenLeaveOneKeyOneLeaseOneWatcher(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.WithAuth("svc", "pass"), etcdtest.WithTokenTTL(2*time.Second))
	p := registered(t, etcd.Endpoints(), "svc", discov.WithPubEtcdAccount("svc", "pass"))
	o := etcdtest.Observe(t, etcd, "svc/")
	before := etcd.Requests()["Authenticate"]
	expire := func() { time.Sleep(3200 * time.Millisecond) } // etcd looks for expired tokens once a second
	for round := range 20 {
		switch round % 4 {
		case 0:
			expire()
		case 2:
			p.Pause()
			expire()
		}
		require.NoError(t, p.PauseContext(t.Context()), "round %d", round)
		require.Empty(t, o.Keys(t), "round %d", round)
		require.NoError(t, p.ResumeContext(t.Context()), "round %d", round)
		require.Len(t, o.Keys(t), 1, "round %d", round)
		etcd.RequireLeases(t, 1)
		etcdtest.RequireSoon(t, time.Second, func() bool {
			return etcd.Watchers() == 1 && etcd.OpenStreams("Watch") == 1 && etcd.OpenStreams("LeaseKeepAlive") <= 1
		}, "round %d: not one watcher", round)
	}
	authenticated := etcd.Requests()["Authenticate"] - before
	t.Logf("figure: %d Authenticate in 20 rounds, 10 of them after the token has expired", authenticated)
	assert.LessOrEqual(t, authenticated, 25)
	assert.GreaterOrEqual(t, authenticated, 3, "no token has expired: the test proves nothing")
	// The watcher is one that works.
	_, err := etcd.Client(t).Delete(t.Context(), p.Status().Key)
	require.NoError(t, err)
	requireBack(t, o, p.Status().Key, time.Now())
}

func TestATokenThatExpiresAgainAndAgainCostsNoKey(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.WithAuth("svc", "pass"), etcdtest.WithTokenTTL(time.Second))
	_, keys := severalRegistered(t, 10, etcd.Endpoints(), "svc", discov.WithPubEtcdAccount("svc", "pass"))
	o := etcdtest.Observe(t, etcd, "svc/")
	before := etcd.Requests()
	time.Sleep(15 * time.Second)
	after := etcd.Requests()
	for _, key := range keys {
		o.RequireNeverAbsent(t, key)
	}
	t.Logf("figure: in 15 s with tokens of 1 s: %d Authenticate, %d LeaseKeepAlive streams, %d renewals of 10 leases",
		after["Authenticate"]-before["Authenticate"], after["LeaseKeepAlive"]-before["LeaseKeepAlive"], after["LeaseKeepAlive.msg"]-before["LeaseKeepAlive.msg"])
	assert.LessOrEqual(t, after["Authenticate"]-before["Authenticate"], 15)
}

func TestAuthEnabledAndDisabledOnARunningClusterCostsNoKey(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.WithAuth("svc", "pass"))
	etcd.AuthDisable(t)
	with := registered(t, etcd.Endpoints(), "with", discov.WithId(1), discov.WithTTL(2*time.Second), discov.WithPubEtcdAccount("svc", "pass"))
	registered(t, etcd.Endpoints(), "without", discov.WithId(1), discov.WithTTL(2*time.Second))
	o := etcdtest.Observe(t, etcd, "with")
	for round := range 2 {
		etcd.AuthEnable(t)
		most := mostLeases(t, etcd, 5*time.Second)
		t.Logf("figure: round %d: %d leases at most while auth was on", round, most)
		assert.LessOrEqual(t, most, 3)
		require.NoError(t, requireIn(t, defaultTimeout, "Update", func() error { return with.Update(t.Context(), fmt.Sprint("on", round)) }))
		etcd.AuthDisable(t)
		requireBack(t, o, "without/1", time.Now())
		time.Sleep(3 * time.Second)
		require.NoError(t, requireIn(t, defaultTimeout, "Update", func() error { return with.Update(t.Context(), fmt.Sprint("off", round)) }))
		o.RequireNeverAbsent(t, "with/1")
		etcd.RequireLeases(t, 2)
	}
}

// write makes etcd's history longer.
func Write(t *testing.T, etcd *etcdtest.Server, times int) {
	t.Helper()
	for range times {
		_, err := etcd.Client(t).Put(t.Context(), "other", "")
		require.NoError(t, err)
	}
}

// TestAWipedOrRestoredEtcdHasTheKeyOfAnAccountBackAtOnce: etcd lets each call with a token from before wait until its own
// history is as long again.
func TestAWipedOrRestoredEtcdHasTheKeyOfAnAccountBackAtOnce(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.WithAuth("svc", "pass"))
	etcd.Snapshot()
	p := registered(t, etcd.Endpoints(), "svc", discov.WithId(1), discov.WithPubEtcdAccount("svc", "pass"))
	o := etcdtest.Observe(t, etcd, "svc/")
	for how, lose := range map[string]func(){"wiped": etcd.Wipe, "restored": etcd.Restore} {
		Write(t, etcd, 200)
		etcd.Restart() // which forgets all tokens
		require.NoError(t, p.Update(t.Context(), how))
		before := etcd.Requests()["Authenticate"]
		lose()
		requireBack(t, o, "svc/1", time.Now())
		assert.LessOrEqual(t, etcd.Requests()["Authenticate"]-before, 3)
	}
}

// TestATokenFromAFutureThatIsGoneIsNotUsedOnceAuthIsOn: etcd is restored to a time before auth was on, and it is turned on
// again. etcd would let each call with the old token wait.
func TestATokenFromAFutureThatIsGoneIsNotUsedOnceAuthIsOn(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.WithAuth("svc", "pass"))
	etcd.AuthDisable(t)
	etcd.Snapshot()
	etcd.AuthEnable(t)
	Write(t, etcd, 100)
	p := registered(t, etcd.Endpoints(), "svc", discov.WithId(1), discov.WithPubEtcdAccount("svc", "pass"))
	o := etcdtest.Observe(t, etcd, "svc/")
	etcd.Restore()
	requireBack(t, o, "svc/1", time.Now())
	etcd.AuthEnable(t)
	require.NoError(t, requireIn(t, time.Second, "Update", func() error { return p.Update(t.Context(), "new") }))
	require.NoError(t, requireIn(t, time.Second, "Pause", func() error { return p.PauseContext(t.Context()) }))
}

func TestAPasswordChangedAndChangedBackBringsTheKeyBackAtOnce(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.WithAuth("svc", "pass"))
	_, short := severalRegistered(t, 3, etcd.Endpoints(), "svc/short", discov.WithPubEtcdAccount("svc", "pass"), discov.WithTTL(2*time.Second))
	_, long := severalRegistered(t, 3, etcd.Endpoints(), "svc/long", discov.WithPubEtcdAccount("svc", "pass"), discov.WithTTL(20*time.Second))
	o := etcdtest.Observe(t, etcd, "svc/")
	before := etcd.Requests()["Authenticate"]
	etcd.SetPassword(t, "svc", "another")
	most := mostLeases(t, etcd, 10*time.Second)
	authenticated := etcd.Requests()["Authenticate"] - before
	etcd.SetPassword(t, "svc", "pass")
	changedBack := time.Now()
	for _, key := range short {
		requireBack(t, o, key, changedBack)
	}
	time.Sleep(2 * time.Second)
	for _, key := range long {
		o.RequireNeverAbsent(t, key)
	}
	t.Logf("figure: %d leases at most, %d Authenticate in 10 s of a wrong password", most, authenticated)
	assert.LessOrEqual(t, most, 12)
	assert.LessOrEqual(t, authenticated, 30)
	etcd.RequireLeases(t, 6)
}

func TestAPermissionTakenAndGivenBackCostsNoNeighbourItsKey(t *testing.T) {
	t.Parallel()
	for name, taken := range map[string]time.Duration{
		"for less than the TTL": time.Second,
		"for twice the TTL":     6 * time.Second,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ttl := 3 * time.Second
			etcd := etcdtest.Start(t, etcdtest.WithAuth("admin", "pass"))
			etcd.AddUser(t, "svc", "pass")
			rw := clientv3.PermissionType(clientv3.PermReadWrite)
			etcd.Grant(t, "svc", "svc/victim", "", rw)
			etcd.Grant(t, "svc", "svc/n/", clientv3.GetPrefixRangeEnd("svc/n/"), rw)
			opts := []discov.PubOption{discov.WithPubEtcdAccount("svc", "pass"), discov.WithTTL(ttl)}
			victim := registered(t, etcd.Endpoints(), "svc/victim", append(opts, discov.WithExactKey())...)
			pubs, neighbours := severalRegistered(t, 5, etcd.Endpoints(), "svc/n", opts...)
			o := etcdtest.Observe(t, etcd, "svc/")
			before := etcd.Requests()
			etcd.Revoke(t, "svc", "svc/victim", "")
			most := mostLeases(t, etcd, taken)
			after := etcd.Requests()
			status := victim.Status()
			require.NoError(t, requireIn(t, defaultTimeout, "a neighbour's Update", func() error { return pubs[0].Update(t.Context(), "new") }))
			etcd.Grant(t, "svc", "svc/victim", "", rw)
			given := time.Now()
			requireBack(t, o, "svc/victim", given)
			if taken < ttl-time.Second {
				o.RequireNeverAbsent(t, "svc/victim")
			} else {
				require.ErrorIs(t, status.Err, rpctypes.ErrPermissionDenied)
			}
			t.Logf("figure: %d leases at most of %d; in %v without permission %d LeaseGrant, %d Put, %d Txn, %d LeaseKeepAlive streams, %d renewals, %d Authenticate",
				most, len(pubs)+1, taken, after["LeaseGrant"]-before["LeaseGrant"], after["Put"]-before["Put"], after["Txn"]-before["Txn"],
				after["LeaseKeepAlive"]-before["LeaseKeepAlive"], after["LeaseKeepAlive.msg"]-before["LeaseKeepAlive.msg"], after["Authenticate"]-before["Authenticate"])
			assert.LessOrEqual(t, most, len(pubs)+2)
			time.Sleep(ttl)
			for _, key := range neighbours {
				o.RequireNeverAbsent(t, key)
			}
			etcd.RequireLeases(t, len(pubs)+1)
			require.NoError(t, requireIn(t, defaultTimeout, "Pause", func() error { return victim.PauseContext(t.Context()) }))
			require.False(t, o.Present(t, "svc/victim"))
		})
	}
}

func TestAPublisherWithoutPermissionIsWithdrawnWithinItsTTL(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.WithAuth("admin", "pass"))
	etcd.AddUser(t, "svc", "pass")
	etcd.Grant(t, "svc", "svc/victim", "", clientv3.PermissionType(clientv3.PermReadWrite))
	p := registered(t, etcd.Endpoints(), "svc/victim", discov.WithExactKey(), discov.WithPubEtcdAccount("svc", "pass"), discov.WithTTL(3*time.Second))
	o := etcdtest.Observe(t, etcd, "svc/")
	etcd.Revoke(t, "svc", "svc/victim", "")
	asked := time.Now()
	err := requireIn(t, defaultTimeout, "Stop without permission", func() error { return p.StopContext(t.Context()) })
	etcdtest.RequireSoon(t, time.Until(asked.Add(3500*time.Millisecond)), func() bool { return !o.Present(t, "svc/victim") }, "stopped, yet there")
	t.Logf("figure: gone %v after Stop: %v", time.Since(asked).Round(time.Millisecond), err)
	etcd.Grant(t, "svc", "svc/victim", "", clientv3.PermissionType(clientv3.PermReadWrite))
	time.Sleep(time.Second)
	require.False(t, o.Present(t, "svc/victim"))
}

func TestAUserDeletedAndCreatedAgainBringsTheKeyBackAtOnce(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.WithAuth("admin", "pass"))
	rw := clientv3.PermissionType(clientv3.PermReadWrite)
	etcd.AddUser(t, "svc", "pass")
	etcd.Grant(t, "svc", "svc/", clientv3.GetPrefixRangeEnd("svc/"), rw)
	_, keys := severalRegistered(t, 3, etcd.Endpoints(), "svc", discov.WithPubEtcdAccount("svc", "pass"), discov.WithTTL(2*time.Second))
	o := etcdtest.Observe(t, etcd, "svc/")
	etcd.DeleteUser(t, "svc")
	most := mostLeases(t, etcd, 5*time.Second)
	_, err := etcd.Client(t).UserAdd(t.Context(), "svc", "pass")
	require.NoError(t, err)
	_, err = etcd.Client(t).UserGrantRole(t.Context(), "svc", "svc")
	require.NoError(t, err)
	created := time.Now()
	for _, key := range keys {
		requireBack(t, o, key, created)
	}
	t.Logf("figure: %d leases at most of 3", most)
	assert.LessOrEqual(t, most, 6)
	etcdtest.RequireSoon(t, 3*time.Second, func() bool { return etcd.Leases(t) == 3 }, "leases")
}

func TestAUserWhoMayOnlyWriteIsRegisteredAndKept(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.WithAuth("admin", "pass"))
	etcd.AddUser(t, "svc", "pass")
	etcd.Grant(t, "svc", "svc/", clientv3.GetPrefixRangeEnd("svc/"), clientv3.PermissionType(clientv3.PermWrite))
	p := registered(t, etcd.Endpoints(), "svc", discov.WithId(1), discov.WithPubEtcdAccount("svc", "pass"), discov.WithTTL(5*time.Second))
	o := etcdtest.Observe(t, etcd, "svc/")
	before := etcd.Requests()
	time.Sleep(6 * time.Second)
	after := etcd.Requests()
	t.Logf("figure: in 6 s %d Watch, %d Watch.create, %d Range, %d Put, %d Txn", after["Watch"]-before["Watch"],
		after["Watch.create"]-before["Watch.create"], after["Range"]-before["Range"], after["Put"]-before["Put"], after["Txn"]-before["Txn"])
	assert.LessOrEqual(t, after["Watch.create"]-before["Watch.create"], 2, "a watch that is denied is asked for again and again")
	require.Equal(t, discov.StatePublished, p.Status().State)
	require.NoError(t, requireIn(t, defaultTimeout, "Update", func() error { return p.Update(t.Context(), "new") }))
	kv, _ := o.KV(t, "svc/1")
	require.Equal(t, "new", kv.Value)
	etcd.Restart()
	etcdtest.RequireSoon(t, atOnce, func() bool { return o.Present(t, "svc/1") }, "after a restart")
	o.RequireNeverAbsent(t, "svc/1")
	revokeAll(t, etcd)
	requireBack(t, o, "svc/1", time.Now().Add(5*time.Second/3)) // nobody tells a writer; the next renewal does
	require.NoError(t, requireIn(t, defaultTimeout, "Pause", func() error { return p.PauseContext(t.Context()) }))
	require.False(t, o.Present(t, "svc/1"))
	require.NoError(t, requireIn(t, defaultTimeout, "Resume", func() error { return p.ResumeContext(t.Context()) }))
	require.True(t, o.Present(t, "svc/1"))
	require.NoError(t, requireIn(t, defaultTimeout, "Stop", func() error { return p.StopContext(t.Context()) }))
	require.False(t, o.Present(t, "svc/1"))
	etcd.RequireLeases(t, 0)
}

func TestAUserWhoMayNotWriteIsToldSoAndLeavesNothing(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.WithAuth("admin", "pass"))
	etcd.AddUser(t, "svc", "pass")
	etcd.Grant(t, "svc", "svc/", clientv3.GetPrefixRangeEnd("svc/"), clientv3.PermissionType(clientv3.PermRead))
	p := unstarted(t, etcd.Endpoints(), "svc", discov.WithId(1), discov.WithPubEtcdAccount("svc", "pass"))
	err := requireIn(t, 2*time.Second, "KeepAlive", func() error { return start(t, p) })
	require.ErrorIs(t, err, rpctypes.ErrPermissionDenied)
	require.ErrorContains(t, err, "put svc/1")
	etcd.RequireLeases(t, 0)
	etcd.Grant(t, "svc", "svc/", clientv3.GetPrefixRangeEnd("svc/"), clientv3.PermissionType(clientv3.PermReadWrite))
	require.NoError(t, p.KeepAlive())
}

func TestAWrongPasswordIsToldSo(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.WithAuth("svc", "pass"))
	p := unstarted(t, etcd.Endpoints(), "svc", discov.WithId(1), discov.WithPubEtcdAccount("svc", "wrong"))
	err := requireIn(t, 2*time.Second, "KeepAlive", func() error { return start(t, p) })
	require.ErrorIs(t, err, rpctypes.ErrAuthFailed)
	etcd.RequireLeases(t, 0)
}

func TestFiftyPublishersOnOneAccountAuthenticateOnceAfterARestart(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.WithAuth("svc", "pass"))
	_, keys := severalRegistered(t, 50, etcd.Endpoints(), "svc", discov.WithPubEtcdAccount("svc", "pass"))
	o := etcdtest.Observe(t, etcd, "svc/")
	t.Logf("figure: %d Authenticate for 50 first registrations", etcd.Requests()["Authenticate"])
	assert.LessOrEqual(t, etcd.Requests()["Authenticate"], 2)
	for range 3 {
		before := etcd.Requests()
		etcd.Restart()
		time.Sleep(5 * time.Second)
		after := etcd.Requests()
		t.Logf("figure: after a restart %d Authenticate, %d Range, %d renewals, %d Put, %d Txn", after["Authenticate"]-before["Authenticate"],
			after["Range"]-before["Range"], after["LeaseKeepAlive.msg"]-before["LeaseKeepAlive.msg"], after["Put"]-before["Put"], after["Txn"]-before["Txn"])
		assert.LessOrEqual(t, after["Authenticate"]-before["Authenticate"], 2)
	}
	for _, key := range keys {
		o.RequireNeverAbsent(t, key)
	}
}

func TestAnAccountByCertificateNeedsNoPassword(t *testing.T) {
	t.Parallel()
	ca := etcdtest.NewCA(t)
	etcd := etcdtest.Start(t, etcdtest.WithServerTLS(ca.Issue(t)), etcdtest.WithAuth("svc", "pass"))
	cert := ca.Issue(t, etcdtest.Named("svc"))
	p := registered(t, etcd.Endpoints(), "svc", discov.WithId(1), discov.WithTTL(2*time.Second), discov.WithPubEtcdTLS(cert.CertFile, cert.KeyFile, cert.CAFile, false))
	o := etcdtest.Observe(t, etcd, "svc/")
	time.Sleep(3 * time.Second)
	etcd.Restart()
	time.Sleep(3 * time.Second)
	o.RequireNeverAbsent(t, "svc/1")
	require.NoError(t, requireIn(t, defaultTimeout, "Stop", func() error { return p.StopContext(t.Context()) }))
	require.False(t, o.Present(t, "svc/1"))
}

// ---- Certificates ----

func TestCertificatesRotatedOnDiskAreUsedFromTheNextConnectionOn(t *testing.T) {
	t.Parallel()
	for name, together := range map[string]bool{"all at once": true, "the client's after the server's": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := etcdtest.NewCA(t)
			server, client := ca.Issue(t), ca.Issue(t)
			etcd := etcdtest.Start(t, etcdtest.WithServerTLS(server))
			// Files of its own: the CA of a client is rolled out apart from the server's.
			_, keys := severalRegistered(t, 3, etcd.Endpoints(), "svc", discov.WithTTL(10*time.Second), discov.WithPubEtcdTLS(client.CertFile, client.KeyFile, client.CAFile, false))
			o := etcdtest.Observe(t, etcd, "svc/")
			etcd.Stop()
			ca.Replace(t)
			ca.Renew(t, server)
			if together {
				ca.Renew(t, client)
			}
			etcd.Start()
			if !together {
				time.Sleep(2 * time.Second)
				ca.Renew(t, client)
			}
			good := time.Now()
			watching := func() bool { return etcd.Watchers() == 3 }
			etcdtest.RequireSoon(t, 10*time.Second, watching, "they don't watch")
			t.Logf("figure: watching %v after the files were right", time.Since(good).Round(time.Millisecond))
			assert.LessOrEqual(t, time.Since(good), atOnce)
			time.Sleep(2 * time.Second)
			for _, key := range keys {
				o.RequireNeverAbsent(t, key)
			}
			etcd.RequireLeases(t, 3)
		})
	}
}

func TestAnExpiredCertificateReplacedOnDiskBringsTheKeyBackAtOnceAndIsNamed(t *testing.T) {
	t.Parallel()
	ca := etcdtest.NewCA(t)
	server, client := ca.Issue(t), ca.Issue(t)
	etcd := etcdtest.Start(t, etcdtest.WithServerTLS(server))
	p := registered(t, etcd.Endpoints(), "svc", discov.WithId(1), discov.WithTTL(2*time.Second), discov.WithPubEtcdTLS(client.CertFile, client.KeyFile, client.CAFile, false))
	o := etcdtest.Observe(t, etcd, "svc/")
	ca.Renew(t, server, etcdtest.Expired())
	etcd.Restart()
	time.Sleep(6 * time.Second)
	require.False(t, o.Present(t, "svc/1"))
	err := p.Status().Err
	require.ErrorContains(t, err, "expired")
	ca.Renew(t, server) // etcd reads it at each handshake
	requireBack(t, o, "svc/1", time.Now())
	etcd.RequireLeases(t, 1)
}

func TestAnOutageIsNamedByItsCause(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	p := registered(t, etcd.Endpoints(), "svc", discov.WithId(1), discov.WithTTL(2*time.Second))
	etcd.Stop()
	etcdtest.RequireSoon(t, 5*time.Second, func() bool {
		err := p.Status().Err
		return err != nil && strings.Contains(err.Error(), "connection refused")
	}, "the error does not tell that the connection is refused")
	for range 20 { // and goes on to tell
		time.Sleep(200 * time.Millisecond)
		require.ErrorContains(t, p.Status().Err, "connection refused")
	}
	etcd.Start()
}

// ---- The caller's own client ----

func ownClient(t testing.TB, endpoints ...string) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	return client
}

func TestTheCallersClientClosedUnderUsIsNamedAndBoundedAndLeavesNoGoroutine(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	o := etcdtest.Observe(t, etcd, "svc/")
	etcd.Leases(t) // opens the test's own client
	client := ownClient(t, etcd.Endpoints()...)
	const bound = time.Second
	opts := []discov.PubOption{discov.WithClient(client), discov.WithTTL(2 * time.Second), discov.WithTimeout(bound)}
	pubs, _ := severalRegistered(t, 4, nil, "svc", opts...)
	unbegun := unstarted(t, nil, "svc", append(opts, discov.WithId(7))...)
	paused := registered(t, nil, "svc", append(opts, discov.WithId(8))...)
	paused.Pause()
	var updates sync.WaitGroup // one call is in the middle of things
	for i := range 50 {
		updates.Go(func() { _ = pubs[0].Update(t.Context(), fmt.Sprint(i)) })
	}
	require.NoError(t, client.Close())
	closed := time.Now()
	updates.Wait()
	const named = "WithClient was closed"
	etcdtest.RequireSoon(t, 2*time.Second, func() bool {
		for _, p := range pubs {
			if err := p.Status().Err; err == nil || !strings.Contains(err.Error(), named) {
				return false
			}
		}
		return true
	}, "not all know why")
	t.Logf("figure: named after %v", time.Since(closed).Round(time.Millisecond))
	require.ErrorContains(t, requireIn(t, bound, "Update", func() error { return pubs[1].Update(t.Context(), "new") }), named)
	require.ErrorContains(t, requireIn(t, bound, "Pause", func() error { return pubs[2].PauseContext(t.Context()) }), named)
	require.ErrorContains(t, requireIn(t, bound, "Resume", func() error { return pubs[2].ResumeContext(t.Context()) }), named)
	require.ErrorContains(t, requireIn(t, bound, "KeepAlive", unbegun.KeepAlive), named)
	require.ErrorContains(t, requireIn(t, bound, "Resume of a paused one", func() error { return paused.ResumeContext(t.Context()) }), named)
	for _, p := range pubs {
		err := requireIn(t, bound, "Stop", func() error { return p.StopContext(t.Context()) })
		require.ErrorContains(t, err, named)
	}
	require.NoError(t, requireIn(t, bound, "Stop of a paused one", func() error { return paused.StopContext(t.Context()) }), "it has nothing to withdraw")
	etcdtest.RequireSoon(t, 4*time.Second, func() bool { return len(o.Keys(t)) == 0 }, "keys outlive their leases")
	t.Logf("figure: all gone %v after the close", time.Since(closed).Round(time.Millisecond))
	for _, p := range append(pubs, paused, unbegun) {
		p.Stop() // waits for the end, a TTL at most
	}
	etcdtest.RequireSoon(t, 3*time.Second, func() bool { return labelled(t.Name()) == "" }, "goroutines are left")
}

func TestTheCallersClientMovedToAnotherEndpointCostsNoKey(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	old, new := etcdtest.NewPath(t, etcd.Endpoints()[0]), etcdtest.NewPath(t, etcd.Endpoints()[0])
	client := ownClient(t, old.Endpoint())
	pubs, keys := severalRegistered(t, 3, nil, "svc", discov.WithClient(client), discov.WithTTL(3*time.Second))
	o := etcdtest.Observe(t, etcd, "svc/")
	for _, to := range []struct{ from, to *etcdtest.Path }{{old, new}, {new, old}} {
		to.to.Accept()
		client.SetEndpoints(to.to.Endpoint())
		time.Sleep(time.Second)
		to.from.Refuse()
		to.from.Reset()
		time.Sleep(4 * time.Second)
		require.NoError(t, requireIn(t, defaultTimeout, "Update", func() error { return pubs[0].Update(t.Context(), to.to.Endpoint()) }))
		require.Zero(t, to.from.Connections())
	}
	for _, key := range keys {
		o.RequireNeverAbsent(t, key)
	}
	etcd.RequireLeases(t, 3)
}

// ---- What else an operator may do ----

func TestAKeyDeletedAsFastAsPossibleIsBackAtOnce(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	p := registered(t, etcd.Endpoints(), "svc", discov.WithId(1), discov.WithTTL(2*time.Second))
	o := etcdtest.Observe(t, etcd, "svc/")
	before, deletes := etcd.Requests(), 0
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); deletes++ {
		_, err := etcd.Client(t).Delete(t.Context(), "svc/1")
		require.NoError(t, err)
	}
	requireBack(t, o, "svc/1", time.Now())
	after := etcd.Requests()
	writes := after["Put"] - before["Put"] + after["Txn"] - before["Txn"]
	t.Logf("figure: %d deletes in 3 s, %d writes of ours, %d Watch.create", deletes, writes, after["Watch.create"]-before["Watch.create"])
	assert.LessOrEqual(t, writes, 100, "a busy loop")
	etcd.RequireLeases(t, 1)
	require.Equal(t, discov.StatePublished, p.Status().State)
}

func TestLeasesRevokedInALoopAreReplacedAtOnceWithoutAPile(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	_, keys := severalRegistered(t, 5, etcd.Endpoints(), "svc", discov.WithTTL(2*time.Second))
	o := etcdtest.Observe(t, etcd, "svc/")
	before, revoked, most := etcd.Requests(), 0, 0
	client := etcd.Client(t)
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		resp, err := client.Leases(t.Context())
		require.NoError(t, err)
		most = max(most, len(resp.Leases))
		for _, lease := range resp.Leases {
			if _, err := client.Revoke(t.Context(), lease.ID); err == nil {
				revoked++
			}
		}
	}
	loopEnd := time.Now()
	for _, key := range keys {
		requireBack(t, o, key, loopEnd)
	}
	after := etcd.Requests()
	t.Logf("figure: %d revoked in 3 s, %d LeaseGrant, %d Put, %d Txn, %d leases at most of 5 Publishers", revoked,
		after["LeaseGrant"]-before["LeaseGrant"], after["Put"]-before["Put"], after["Txn"]-before["Txn"], most)
	assert.LessOrEqual(t, after["LeaseGrant"]-before["LeaseGrant"], 500, "a busy loop")
	assert.LessOrEqual(t, most, 5)
	time.Sleep(3 * time.Second)
	etcd.RequireLeases(t, 5)
}

func TestHistoryCompactedInALoopWhileConnectionsBreakCostsNoKey(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	path := etcdtest.NewPath(t, etcd.Endpoints()[0])
	pubs, keys := severalRegistered(t, 5, []string{path.Endpoint()}, "svc", discov.WithTTL(5*time.Second))
	o := etcdtest.Observe(t, etcd, "svc/")
	for i := range 60 {
		require.NoError(t, pubs[i%5].Update(t.Context(), fmt.Sprint(i)))
		_, err := etcd.Client(t).Put(t.Context(), "noise", fmt.Sprint(i))
		require.NoError(t, err)
		etcd.Compact(t)
		if i%3 == 0 {
			path.Reset()
			_, err := etcd.Client(t).Put(t.Context(), "noise", "more")
			require.NoError(t, err)
			etcd.Compact(t)
		}
	}
	for i, key := range keys {
		o.RequireNeverAbsent(t, key)
		kv, _ := o.KV(t, key)
		require.Equal(t, fmt.Sprint(55+i), kv.Value)
	}
	etcd.RequireLeases(t, 5)
}

// twoWithOneID are a Publisher and another one with the same ID, as from another process: on connections of their own.
func twoWithOneID(t *testing.T, etcd *etcdtest.Server) (one, other *discov.Publisher) {
	t.Helper()
	own := func() discov.PubOption { return discov.WithClientConfig(func(*clientv3.Config) {}) }
	one = registered(t, etcd.Endpoints(), "svc", discov.WithId(1), discov.WithTTL(2*time.Second), own())
	other = registered(t, etcd.Endpoints(), "svc", discov.WithId(1), discov.WithTTL(2*time.Second), own())
	return one, other
}

func TestTwoProcessesWithOneIDDontFight(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	o := etcdtest.Observe(t, etcd, "svc/")
	one, other := twoWithOneID(t, etcd)
	etcdtest.RequireSoon(t, time.Second, func() bool { return one.Status().State == discov.StateConflict }, "the first does not step back")
	before := etcd.Requests()
	time.Sleep(6 * time.Second)
	after := etcd.Requests()
	writes := after["Put"] - before["Put"] + after["Txn"] - before["Txn"]
	t.Logf("figure: %d writes in 6 s", writes)
	assert.Zero(t, writes, "they fight")
	kv, _ := o.KV(t, "svc/1")
	require.EqualValues(t, other.Status().Lease, kv.Lease)
	etcd.Restart()
	time.Sleep(3 * time.Second)
	require.NoError(t, other.StopContext(t.Context()))
	requireBack(t, o, "svc/1", time.Now())
	kv, _ = o.KV(t, "svc/1")
	require.EqualValues(t, one.Status().Lease, kv.Lease)
	require.NoError(t, one.StopContext(t.Context()))
	require.False(t, o.Present(t, "svc/1"))
	etcd.RequireLeases(t, 0)
}

func TestTwoProcessesWithOneIDThatLoseTheirLeasesOftenDontFight(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	o := etcdtest.Observe(t, etcd, "svc/")
	one, other := twoWithOneID(t, etcd)
	before := etcd.Requests()
	for range 8 {
		revokeAll(t, etcd)
		time.Sleep(500 * time.Millisecond)
	}
	after := etcd.Requests()
	t.Logf("figure: 8 times all leases lost: %d Put, %d Txn, %d LeaseGrant of two with one ID; states %v and %v", after["Put"]-before["Put"],
		after["Txn"]-before["Txn"], after["LeaseGrant"]-before["LeaseGrant"], one.Status().State, other.Status().State)
	// Each has taken it back from the other several times, so the next time may be a while away.
	etcdtest.RequireSoon(t, 12*time.Second, func() bool { return o.Present(t, "svc/1") }, "the key is nobody's")
	etcdtest.RequireSoon(t, 2*time.Second, func() bool { return etcd.Leases(t) <= 2 }, "leases")
	before = etcd.Requests()
	time.Sleep(3 * time.Second)
	after = etcd.Requests()
	assert.LessOrEqual(t, after["Put"]-before["Put"]+after["Txn"]-before["Txn"], 1, "they fight")
}

func TestAValueThatIsTooLargeIsToldSoAndLeavesTheOldOne(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	o := etcdtest.Observe(t, etcd, "svc/")
	large, tooLarge, farTooLarge := strings.Repeat("x", 1<<20), strings.Repeat("x", 1700<<10), strings.Repeat("x", 4<<20)

	p := registered(t, etcd.Endpoints(), "svc", discov.WithId(1), discov.WithTTL(2*time.Second))
	require.NoError(t, requireIn(t, 2*time.Second, "Update to 1 MB", func() error { return p.Update(t.Context(), large) }))
	for size, value := range map[string]string{"1.7 MB": tooLarge, "2 MB": strings.Repeat("x", 2<<20), "4 MB": farTooLarge} {
		err := requireIn(t, defaultTimeout, "Update to "+size, func() error { return p.Update(t.Context(), value) })
		require.ErrorContains(t, err, "large", "Update to %s", size)
		q := discov.NewPublisher(etcd.Endpoints(), "svc", value, discov.WithId(2), discov.WithLogger(slog.New(slog.DiscardHandler)))
		t.Cleanup(q.Stop)
		began := time.Now()
		err = requireIn(t, defaultTimeout, "KeepAlive with "+size, q.KeepAlive)
		require.ErrorContains(t, err, "large", "KeepAlive with %s", size)
		assert.Less(t, time.Since(began), defaultTimeout/2, "KeepAlive with %s tries again what cannot work", size)
		etcd.RequireLeases(t, 1)
	}
	time.Sleep(3 * time.Second)
	o.RequireNeverAbsent(t, "svc/1")
	kv, _ := o.KV(t, "svc/1")
	require.Len(t, kv.Value, len(large), "the old value")
	require.NoError(t, requireIn(t, 2*time.Second, "Update", func() error { return p.Update(t.Context(), "good") }))
	kv, _ = o.KV(t, "svc/1")
	require.Equal(t, "good", kv.Value)
	o.RequireNeverAbsent(t, "svc/1")
}

func TestKeysWithOddBytesAreKept(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	o := etcdtest.Observe(t, etcd, "")
	for name, key := range map[string]string{
		"NUL":         "svc\x00",
		"only NUL":    "\x00",
		"not UTF-8":   "svc\xff\xfe\xc3",
		"only 0xff":   "\xff",
		"newline":     "svc\nlevel=ERROR msg=\"forged\"",
		"slashes":     "///svc//",
		"emoji":       "svc🙂",
		"a dot":       ".",
		"very long":   strings.Repeat("k", 64<<10),
		"format verb": "svc%s%d%!",
	} {
		for _, opt := range []discov.PubOption{discov.WithId(1), discov.WithExactKey()} {
			p := registered(t, etcd.Endpoints(), key, opt, discov.WithTTL(2*time.Second))
			full := p.Status().Key
			require.True(t, o.Present(t, full), name)
			_, err := etcd.Client(t).Delete(t.Context(), full)
			require.NoError(t, err)
			etcdtest.RequireSoon(t, atOnce, func() bool { return o.Present(t, full) }, name)
			require.NoError(t, p.Update(t.Context(), "v\xff\x00"), name)
			kv, _ := o.KV(t, full)
			require.Equal(t, "v\xff\x00", kv.Value, name)
			require.NoError(t, p.StopContext(t.Context()), name)
			require.False(t, o.Present(t, full), name)
		}
	}
	etcd.RequireLeases(t, 0)
}

func TestATTLGrantedAboveTheOneAskedForIsTheOneThatCounts(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	path := etcdtest.NewPath(t, etcd.Endpoints()[0])
	p := registered(t, []string{path.Endpoint()}, "svc", discov.WithId(1), discov.WithTTL(time.Second), discov.WithTimeout(time.Second))
	o := etcdtest.Observe(t, etcd, "svc/")
	require.Equal(t, 2*time.Second, p.Status().TTL)
	time.Sleep(5 * time.Second)
	o.RequireNeverAbsent(t, "svc/1")
	path.Swallow()
	asked := time.Now()
	err := requireIn(t, defaultTimeout, "Stop", func() error { return p.StopContext(t.Context()) })
	var withdraw *discov.WithdrawError
	require.ErrorAs(t, err, &withdraw)
	until := withdraw.Until
	etcdtest.RequireSoon(t, 5*time.Second, func() bool { return !o.Present(t, "svc/1") }, "it outlives its lease")
	t.Logf("figure: gone after %v, told %v", time.Since(asked).Round(time.Millisecond), until.Sub(asked).Round(time.Millisecond))
	assert.WithinDuration(t, until, time.Now(), 2*time.Second) // etcd ends a lease up to half a second late, later under load
	path.Heal()
}

func TestAStormOfPausesAndResumesEndsAsTheLastOneSays(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.WithAuth("svc", "pass"), etcdtest.WithTokenTTL(time.Second))
	path := etcdtest.NewPath(t, etcd.Endpoints()[0])
	const n = 100
	pubs, keys := severalRegistered(t, n, []string{path.Endpoint()}, "svc", discov.WithPubEtcdAccount("svc", "pass"), discov.WithTTL(5*time.Second))
	o := etcdtest.Observe(t, etcd, "svc/")
	var calls, slow atomic.Int64 // slow: by more than a machine with a lot to do explains
	var storm sync.WaitGroup
	end := time.Now().Add(4 * time.Second)
	for _, p := range pubs {
		for range 2 {
			storm.Go(func() {
				for time.Now().Before(end) {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(50))*time.Millisecond)
					began := time.Now()
					switch rand.IntN(3) {
					case 0:
						_ = p.PauseContext(ctx)
					case 1:
						_ = p.ResumeContext(ctx)
					case 2:
						_ = p.Update(ctx, fmt.Sprint(rand.Int()))
					}
					cancel()
					calls.Add(1)
					if time.Since(began) > 3*time.Second {
						slow.Add(1)
					}
				}
			})
		}
	}
	for range 8 {
		time.Sleep(400 * time.Millisecond)
		path.Reset()
	}
	storm.Wait()
	var last sync.WaitGroup
	for i, p := range pubs {
		last.Go(func() {
			if i%2 == 0 {
				assert.NoError(t, p.ResumeContext(t.Context()))
				assert.NoError(t, p.Update(t.Context(), "last"))
			} else {
				assert.NoError(t, p.PauseContext(t.Context()))
			}
		})
	}
	last.Wait()
	t.Logf("figure: %d calls, %d of them late by 3 s; %d Authenticate", calls.Load(), slow.Load(), etcd.Requests()["Authenticate"])
	have := o.Keys(t)
	require.Len(t, have, n/2)
	for i := 0; i < n; i += 2 {
		require.Equal(t, "last", have[keys[i]].Value)
		require.EqualValues(t, pubs[i].Status().Lease, have[keys[i]].Lease)
	}
	etcd.RequireLeases(t, n/2)
	etcdtest.RequireSoon(t, 3*time.Second, func() bool { return etcd.Watchers() == n/2 && etcd.OpenStreams("Watch") == 1 }, "watchers")
	assert.Zero(t, slow.Load())
	time.Sleep(6 * time.Second)
	require.Len(t, o.Keys(t), n/2)
	etcd.RequireLeases(t, n/2)
}
