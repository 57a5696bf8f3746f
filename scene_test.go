package discov_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// atOnce is what the way back may take once etcd answers again, gRPC's reconnect included.
	atOnce = time.Second
	// shortTTL is for tests whose point is not the TTL.
	shortTTL = 3 * time.Second
	// expiryLag is how much later than its TTL a lease may end.
	expiryLag = time.Second
	// restartLag is how much later than its TTL a lease may end after a restart: a new leader adds an election timeout.
	restartLag = expiryLag + time.Second
	// callSlack is what a call may take above its bound, on a machine with a lot to do.
	callSlack = 250 * time.Millisecond

	prefix = "user.rpc"

	defaultTTL     = 10 * time.Second
	defaultTimeout = 5 * time.Second
)

// A faultyEtcd is an etcd that a fault can be made in.
type faultyEtcd interface {
	etcdtest.Target
	Endpoints() []string
	Client(testing.TB) *clientv3.Client
	LeaseIDs(testing.TB) []clientv3.LeaseID
}

// A scene is one etcd, the Publishers of a test, and an observer that sees etcd's contents alone. At the end of a test
// that has not failed it stops the Publishers, and demands that nothing of them is left: key, lease, watcher, connection
// or goroutine.
type scene struct {
	t    *testing.T
	etcd faultyEtcd
	*etcdtest.Observer

	endpoints []string           // of etcd, or of the path to it
	opts      []discov.PubOption // of all Publishers
	// What it plays on: the one that etcd is, and the way to it, if there is one.
	server    *etcdtest.Server
	path      *etcdtest.Path
	far       *farPath
	process   *etcdtest.Process
	cluster   *etcdtest.Cluster
	processes *etcdtest.ProcessCluster

	instances []*instance
	others    int // leases that are not ours

	meter *meter
}

func newScene(t *testing.T, etcd faultyEtcd) *scene {
	t.Helper()
	s := &scene{t: t, etcd: etcd, endpoints: etcd.Endpoints(), Observer: etcdtest.Observe(t, etcd, prefix), meter: newMeter(t)}
	switch etcd := etcd.(type) {
	case *etcdtest.Server:
		s.server = etcd
	case *etcdtest.Process:
		s.process = etcd
	case *etcdtest.Cluster:
		s.cluster = etcd
	case *etcdtest.ProcessCluster:
		s.processes = etcd
	}
	return s
}

// onServer plays on an etcd in this process.
func onServer(t *testing.T, opts ...etcdtest.Option) *scene {
	t.Helper()
	return newScene(t, etcdtest.Start(t, opts...))
}

// onPath plays on an etcd in this process that is reached over a path.
func onPath(t *testing.T, opts ...etcdtest.Option) *scene {
	t.Helper()
	etcd := etcdtest.Start(t, opts...)
	path := etcdtest.NewPath(t, etcd.Endpoints()[0]) // before the scene: it is to outlive the Publishers
	s := newScene(t, etcd)
	s.path, s.endpoints = path, []string{path.Endpoint()}
	return s
}

// onFar plays on an etcd in this process that is reached over a path with latency, of which there is none yet.
func onFar(t *testing.T, opts ...etcdtest.Option) *scene {
	t.Helper()
	etcd := etcdtest.Start(t, opts...)
	path := newFarPath(t, etcd.Endpoints()[0])
	s := newScene(t, etcd)
	s.far, s.endpoints = path, []string{path.listener.Addr().String()}
	return s
}

// onProcess plays on an etcd in a process of its own.
func onProcess(t *testing.T, opts ...etcdtest.Option) *scene {
	t.Helper()
	return newScene(t, etcdtest.StartProcess(t, opts...))
}

// onCluster plays on an etcd of three members in this process.
func onCluster(t *testing.T, opts ...etcdtest.Option) *scene {
	t.Helper()
	return newScene(t, etcdtest.StartCluster(t, 3, opts...))
}

// onProcesses plays on an etcd of three members, each in a process of its own.
func onProcesses(t *testing.T, opts ...etcdtest.Option) *scene {
	t.Helper()
	return newScene(t, etcdtest.StartProcessCluster(t, 3, opts...))
}

// guarded plays on an etcd that wants certificates, an account, or both.
func guarded(t *testing.T, on func(*testing.T, ...etcdtest.Option) *scene, tls, account bool, opts ...etcdtest.Option) *scene {
	t.Helper()
	var client []discov.PubOption
	if tls {
		ca := etcdtest.NewCA(t)
		opts = append(opts, etcdtest.WithServerTLS(ca.Issue(t)))
		client = append(client, filesOf(ca.Issue(t)))
	}
	if account {
		opts = append(opts, etcdtest.WithAuth("svc", "pass"))
		client = append(client, withAccount)
	}
	s := on(t, opts...)
	s.opts = append(s.opts, client...)
	return s
}

// withID are the options of one with an id.
func withID(ttl time.Duration) []discov.PubOption {
	return []discov.PubOption{discov.WithId(7), discov.WithTTL(ttl)}
}

// withTTL are those of one whose key has the lease ID.
func withTTL(ttl time.Duration) []discov.PubOption { return []discov.PubOption{discov.WithTTL(ttl)} }

// withAccount is the account that most etcds with accounts have.
var withAccount = discov.WithPubEtcdAccount("svc", "pass")

// filesOf is the option for a certificate.
func filesOf(cert etcdtest.Cert) discov.PubOption {
	return discov.WithPubEtcdTLS(cert.CertFile, cert.KeyFile, cert.CAFile, false)
}

// A meter notes by how much this machine is late, so that a bound can be held to on one that has too much to do: on one
// that has not, it adds nothing.
type meter struct {
	mu    sync.Mutex
	began time.Time
	late  map[time.Time]time.Duration
}

func newMeter(t *testing.T) *meter {
	m := &meter{began: time.Now(), late: map[time.Time]time.Duration{}}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			slept := time.Now()
			if late := etcdtest.Doze(); late > 0 {
				m.mu.Lock()
				m.late[slept] = late
				m.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped })
	return m
}

// allowance is what a bound is extended by: each answer of etcd's takes several goroutines their turns, so twice the
// time that one of them was late.
func (m *meter) allowance(from, to time.Time) time.Duration { return 2 * m.lateness(from, to) }

// lateness is how long the machine was late between from and to, in all.
func (m *meter) lateness(from, to time.Time) (late time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for at, d := range m.late {
		if at.Add(d).After(from) && at.Before(to) {
			late += d
		}
	}
	return late
}

// share is the part of the time for which the machine was late.
func (m *meter) share() float64 {
	return float64(m.lateness(m.began, time.Now())) / float64(time.Since(m.began))
}

// An instance is a Publisher, and what it told.
type instance struct {
	*discov.Publisher
	scene *scene
	told  discov.EventLog
}

// newInstance returns a Publisher that is not started.
func (s *scene) newInstance(value string, opts ...discov.PubOption) *instance {
	if len(s.instances) == 0 {
		s.t.Cleanup(s.finish)
	}
	i := &instance{scene: s}
	first := []discov.PubOption{discov.Quiet, discov.WithObserver(i.told.Observe)}
	i.Publisher = discov.NewPublisher(s.endpoints, prefix, value, slices.Concat(first, s.opts, opts)...)
	s.instances = append(s.instances, i)
	return i
}

// publish starts a Publisher, and demands that it is registered.
func (s *scene) publish(value string, opts ...discov.PubOption) *instance {
	s.t.Helper()
	i := s.newInstance(value, opts...)
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second) // a short timeout is for the fault to meet
	defer cancel()
	require.NoError(s.t, i.startWithin(ctx))
	return i
}

// publishAt is publish, at endpoints of its own.
func (s *scene) publishAt(endpoints []string, value string, opts ...discov.PubOption) *instance {
	s.t.Helper()
	defer func(usual []string) { s.endpoints = usual }(s.endpoints)
	s.endpoints = endpoints
	return s.publish(value, opts...)
}

// publishSeveral registers n Publishers with the ids from 1 to n, which share a connection.
func (s *scene) publishSeveral(n int, opts ...discov.PubOption) (pubs []*instance) {
	s.t.Helper()
	for i := range n {
		pubs = append(pubs, s.publish(fmt.Sprintf("a:%d", i), append([]discov.PubOption{discov.WithId(int64(i + 1))}, opts...)...))
	}
	return pubs
}

// start is KeepAlive; what it starts is labelled, so that what it leaves can be told from what other tests have running.
func (i *instance) start() error { return i.startWithin(context.Background()) }

func (i *instance) startWithin(ctx context.Context) (err error) {
	pprof.Do(ctx, pprof.Labels("scene", i.scene.t.Name()), func(ctx context.Context) { err = i.KeepAliveContext(ctx) })
	return err
}

func (i *instance) key() string { return i.Status().Key }

// These demand that a call ends within its bound, which is not that of a context.

func (i *instance) pauseIn(bound time.Duration) error { return i.in(bound, i.PauseContext) }

func (i *instance) resumeIn(bound time.Duration) error { return i.in(bound, i.ResumeContext) }

func (i *instance) stopIn(bound time.Duration) error { return i.in(bound, i.StopContext) }

func (i *instance) updateIn(bound time.Duration, value string) error {
	return i.in(bound, func(ctx context.Context) error { return i.Update(ctx, value) })
}

func (i *instance) in(bound time.Duration, call func(context.Context) error) error {
	i.scene.t.Helper()
	return i.scene.bounded(bound, func() error { return call(i.scene.t.Context()) })
}

// requireState waits until the Publisher knows what etcd already shows.
func (i *instance) requireState(want discov.State) {
	i.scene.t.Helper()
	etcdtest.RequireSoon(i.scene.t, atOnce, func() bool { return i.Status().State == want }, "state %v:\n%s", want, i)
}

// String is what a person wants to know of a Publisher that has failed.
func (i *instance) String() string {
	var b strings.Builder
	status := i.Status()
	fmt.Fprintf(&b, "%s: %s for %v, value %q, lease %x until %s, %d registrations, err %v\n", status.Key, status.State,
		time.Since(status.Since).Round(time.Millisecond), status.Value, int64(status.Lease), clock(status.Until), i.Stats().Registrations, status.Err)
	for _, e := range i.told.All() {
		fmt.Fprintf(&b, "  %s %s -> %s lease %x err %v\n", clock(e.Time), e.From, e.To, int64(e.Lease), e.Err)
	}
	return b.String()
}

// Format prints String also where the Publisher has a Format of its own.
func (i *instance) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, i.String()) }

func clock(t time.Time) string { return t.Format("15:04:05.000") }

// begin notes the moment of a fault, or of its end.
func (s *scene) begin(what string, args ...any) time.Time {
	now := time.Now()
	s.t.Logf("%s %s", clock(now), fmt.Sprintf(what, args...))
	return now
}

// requireTrue waits until etcd holds the keys of these Publishers and no others, each with the latest value under the
// one lease of its Publisher, and no other lease; and fails the test where that is not so within the time since. A lease
// that nobody needs may be there for longer: one that was asked for twice is revoked once the key is there. It returns how
// long all took.
func (s *scene) requireTrue(since time.Time, within time.Duration, of ...*instance) time.Duration {
	s.t.Helper()
	for {
		wrong, bound := s.wrongKeys(of), within
		if wrong == "" {
			wrong, bound = s.wrongLeases(len(of)), max(within, atOnce)
		}
		took := time.Since(since)
		if wrong == "" {
			return took
		}
		if took > bound+s.meter.allowance(since, time.Now()) {
			for _, i := range of {
				s.t.Logf("%s", i)
			}
			s.t.Fatalf("not true within %v of %s: %s", bound, clock(since), wrong)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// wrongKeys says what in the keys of etcd is not as it should be.
func (s *scene) wrongKeys(of []*instance) string {
	s.t.Helper()
	keys := s.Keys(s.t)
	for _, i := range of {
		status := i.Status()
		kv, ok := keys[status.Key]
		switch {
		case !ok:
			return fmt.Sprintf("%s is absent, and %s", status.Key, status.State)
		case kv.Value != status.Value:
			return fmt.Sprintf("%s is %q, not %q", status.Key, kv.Value, status.Value)
		case kv.Lease != int64(status.Lease):
			return fmt.Sprintf("%s is under lease %x, not %x", status.Key, kv.Lease, int64(status.Lease))
		case status.State != discov.StatePublished:
			return fmt.Sprintf("%s is there, but its Publisher is %s", status.Key, status.State)
		case time.Now().After(status.Until):
			return fmt.Sprintf("%s is there, but its lease was not renewed", status.Key)
		}
	}
	if len(keys) != len(of) {
		return fmt.Sprintf("%d keys for %d Publishers: %v", len(keys), len(of), keys)
	}
	return ""
}

// wrongLeases says that there are others than those of so many Publishers.
func (s *scene) wrongLeases(pubs int) string {
	s.t.Helper()
	if leases := s.etcd.LeaseIDs(s.t); len(leases) != pubs+s.others {
		return fmt.Sprintf("%d leases, not %d: %x", len(leases), pubs+s.others, leases)
	}
	return ""
}

// requireBack demands that all Publishers of the scene have their keys at once, from now on.
func (s *scene) requireBack(what string, args ...any) {
	s.t.Helper()
	what = fmt.Sprintf(what, args...)
	s.figure(what, s.requireTrue(s.begin("%s", what), atOnce, s.instances...))
}

// requireKeysBack demands that these keys are there at once since. Leases that nobody needs may be there for longer.
func (s *scene) requireKeysBack(since time.Time, of ...*instance) {
	s.t.Helper()
	for _, i := range of {
		etcdtest.RequireSoon(s.t, 30*time.Second, func() bool { return s.Present(s.t, i.key()) }, "%s is absent", i.key())
		if _, back := s.absence(i, since); !back.IsZero() {
			s.figure(i.key()+" was back", back.Sub(since))
			require.LessOrEqual(s.t, back.Sub(since), atOnce+s.meter.allowance(since, back), "%s", i)
		}
	}
}

// requireGone waits until etcd holds no key and no lease of ours, and fails the test where it does within the time
// since. It returns how long it took.
func (s *scene) requireGone(since time.Time, within time.Duration) time.Duration {
	s.t.Helper()
	return s.requireTrue(since, within)
}

// requireNeverAbsent demands that none of the keys was ever absent since it was first there.
func (s *scene) requireNeverAbsent(of ...*instance) {
	s.t.Helper()
	for _, i := range of {
		if absences := s.Absences(i.key()); len(absences) > 0 {
			s.t.Fatalf("%s was %v\n%s", i.key(), absences, i)
		}
		s.RequireNeverAbsent(s.t, i.key())
	}
}

// requireOneLease demands that each of the keys was under one lease all the time.
func (s *scene) requireOneLease(of ...*instance) {
	s.t.Helper()
	for _, i := range of {
		leases := map[int64]bool{}
		for _, c := range s.History(i.key()) {
			if !c.Gone {
				leases[c.Lease] = true
			}
		}
		require.Len(s.t, leases, 1, "%s", i)
	}
}

// absence is how long the key was absent since, in total, and when it was back the last time.
func (s *scene) absence(i *instance, since time.Time) (total time.Duration, back time.Time) {
	for _, a := range s.Absences(i.key()) {
		if a.To.IsZero() || a.To.After(since) {
			total += a.Duration()
			back = a.To
		}
	}
	return total, back
}

// mostLeases returns the most leases that were there at one time in the time given.
func (s *scene) mostLeases(during time.Duration) (most int) {
	s.t.Helper()
	for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		most = max(most, len(s.etcd.LeaseIDs(s.t)))
	}
	return most
}

// figure notes a measurement.
func (s *scene) figure(what string, d time.Duration) {
	s.t.Helper()
	s.t.Logf("FIGURE | %s | %s | %v", s.t.Name(), what, d.Round(time.Millisecond))
}

// requireMostly demands that the median of what was measured is within the bound: a single one may be the machine's fault.
func (s *scene) requireMostly(bound time.Duration, what string, measured []time.Duration) {
	s.t.Helper()
	sorted := slices.Sorted(slices.Values(measured))
	median := sorted[len(sorted)/2]
	s.figure(what+", median", median)
	s.figure(what+", longest", sorted[len(sorted)-1])
	share := s.meter.share()
	bound = time.Duration(float64(bound) * (1 + 10*share))
	require.LessOrEqual(s.t, median, bound, "%s: %v; the machine was late for %.0f%% of the time", what, measured, 100*share)
}

// bounded runs a call on a Publisher and demands that it ends within its bound.
func (s *scene) bounded(bound time.Duration, call func() error) error {
	s.t.Helper()
	began := time.Now()
	err := call()
	took := time.Since(began)
	require.LessOrEqual(s.t, took, bound+callSlack+s.meter.allowance(began, time.Now()), "the call outlasted its bound, with %v", err)
	return err
}

// finish stops all, and demands that nothing is left.
func (s *scene) finish() {
	if s.t.Failed() {
		for _, i := range s.instances {
			ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
			_ = i.StopContext(ctx)
			cancel()
		}
		return
	}
	for _, i := range s.instances {
		if i.Status().State == discov.StateStopped {
			continue
		}
		if err := i.StopContext(context.Background()); err != nil {
			s.t.Errorf("stop: %v\n%s", err, i)
			return
		}
	}
	s.requireGone(time.Now(), atOnce)
	requireNoGoroutines(s.t)
	if counted, ok := s.etcd.(interface{ Watchers() int }); ok {
		etcdtest.RequireSoon(s.t, atOnce, func() bool { return counted.Watchers() == 0 }, "watchers are left")
	}
}

// requireNoGoroutines demands that none of the goroutines that a Publisher of this test has started is left, those of
// gRPC included.
func requireNoGoroutines(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		left := labelled(t.Name())
		if left == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("goroutines are left:\n%s", left)
		}
	}
}

// labelled returns the stacks of the goroutines that a Publisher of the test has started.
func labelled(test string) string {
	var all bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&all, 1); err != nil {
		return err.Error()
	}
	var found []string
	for stack := range strings.SplitSeq(all.String(), "\n\n") {
		if strings.Contains(stack, fmt.Sprintf("%q:%q", "scene", test)) {
			found = append(found, stack)
		}
	}
	return strings.Join(found, "\n\n")
}

// What the tests do to etcd.

func (s *scene) remove(i *instance) {
	s.t.Helper()
	_, err := s.etcd.Client(s.t).Delete(s.t.Context(), i.key())
	require.NoError(s.t, err)
}

func (s *scene) revoke(lease clientv3.LeaseID) {
	s.t.Helper()
	_, err := s.etcd.Client(s.t).Revoke(s.t.Context(), lease)
	require.NoError(s.t, err)
}

// grant is another's lease.
func (s *scene) grant() clientv3.LeaseID {
	s.t.Helper()
	lease, err := s.etcd.Client(s.t).Grant(s.t.Context(), 600)
	require.NoError(s.t, err)
	return lease.ID
}

func (s *scene) put(key, value string, opts ...clientv3.OpOption) {
	s.t.Helper()
	_, err := s.etcd.Client(s.t).Put(s.t.Context(), key, value, opts...)
	require.NoError(s.t, err)
}

// raiseRevision makes n writes.
func (s *scene) raiseRevision(n int) {
	s.t.Helper()
	for range n {
		s.put("other", "x")
	}
}

// waitForQuorum waits until etcd answers a linearizable read.
func (s *scene) waitForQuorum() {
	s.t.Helper()
	etcdtest.RequireSoon(s.t, 30*time.Second, func() bool {
		ctx, cancel := context.WithTimeout(s.t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := s.etcd.Client(s.t).Get(ctx, "x")
		return err == nil
	}, "no quorum")
}
