package discov_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Faults behind etcd's own grpc-proxy. It answers a lease's first renewal at once and each later one when its own client
// renews the lease, every third of the TTL: so answers come late, and in another order than the requests.

// proxyTTL leaves time for renewals that take a third of it.
const proxyTTL = 6 * time.Second

// behindProxy is an etcd that is reached through a proxy. Its watchers are the proxy's, and are not counted.
type behindProxy struct{ faultyEtcd }

// publishBehindProxy registers n Publishers under keys with their lease IDs. The value of each is its own.
func publishBehindProxy(t *testing.T, etcd faultyEtcd, n int) (s *scene, proxy *etcdtest.Proxy, pubs []*instance) {
	t.Helper()
	proxy = etcdtest.StartProxy(t, etcd.Endpoints())
	s = newScene(t, behindProxy{etcd})
	s.endpoints = proxy.Endpoints()
	for i := range n {
		pubs = append(pubs, s.publish(fmt.Sprintf("a:%d", i), discov.WithTTL(proxyTTL)))
	}
	return s, proxy, pubs
}

// revokeAtRandom revokes the leases of these Publishers, one after the other, in the time of two TTLs.
func (s *scene) revokeAtRandom(pubs []*instance) {
	s.t.Helper()
	for _, pub := range pubs {
		time.Sleep(rand.N(4 * proxyTTL / time.Duration(len(pubs))))
		s.revoke(pub.Status().Lease)
		s.begin("revoked that of %s", pub.key())
	}
}

// doubles returns the changes that put a second key beside one of the same value.
func (s *scene) doubles() []etcdtest.Change {
	living := map[string]map[string]bool{}
	var doubles []etcdtest.Change
	for _, c := range s.Changes() {
		keys := living[c.Value]
		switch {
		case c.Gone:
			delete(keys, c.Key)
			continue
		case keys == nil:
			keys = map[string]bool{}
			living[c.Value] = keys
		case len(keys) > 0 && !keys[c.Key]:
			doubles = append(doubles, c)
		}
		keys[c.Key] = true
	}
	return doubles
}

func TestLeasesRevokedBehindAProxyCostNoOtherPublisherItsLease(t *testing.T) {
	t.Parallel()
	s, _, pubs := publishBehindProxy(t, etcdtest.Start(t), 30)
	hit, spared := pubs[:15], pubs[15:]
	before := map[*instance]discov.Status{}
	for _, pub := range spared {
		before[pub] = pub.Status()
	}

	s.revokeAtRandom(hit)
	revoked := s.begin("all are revoked")
	time.Sleep(proxyTTL) // the last answers are in
	for _, pub := range spared {
		assert.Equal(t, 1, pub.Stats().Registrations, "%s", pub)
		assert.Equal(t, before[pub].Lease, pub.Status().Lease)
	}
	assert.Empty(t, s.doubles(), "second keys beside living ones")
	s.requireTrue(revoked, proxyTTL, pubs...)
	s.requireNeverAbsent(spared...)
}

func TestStopAfterLeasesWereRevokedBehindAProxyLeavesNothing(t *testing.T) {
	t.Parallel()
	s, _, pubs := publishBehindProxy(t, etcdtest.Start(t), 30)
	s.revokeAtRandom(pubs[:15])
	for _, pub := range pubs {
		require.NoError(t, pub.StopContext(t.Context()))
	}
	s.requireGone(time.Now(), 0)
}

func TestAProxyThatWasAwayLeavesOneKeyForEachPublisher(t *testing.T) {
	t.Parallel()
	s, proxy, pubs := publishBehindProxy(t, etcdtest.Start(t), 30)
	for range 3 {
		proxy.Kill()
		time.Sleep(4 * time.Second)
		proxy.Start()
		back := s.begin("the proxy is back")
		s.figure("the proxy was away", s.requireTrue(back, proxyTTL/2, pubs...))
		for _, pub := range pubs { // a lease that was renewed 2 s before the proxy went may still have ended since
			etcdtest.RequireSoon(t, 2*proxyTTL, func() bool { return pub.Status().Until.After(back.Add(proxyTTL)) }, "renewed since")
		}
		s.requireTrue(time.Now(), proxyTTL/2, pubs...)
		changes := len(s.Changes())
		time.Sleep(proxyTTL) // the last answers are in
		require.Len(t, s.Changes(), changes, "all was well, and changed again:\n%s", s.Timeline())
	}
	assert.Empty(t, s.doubles(), "second keys beside living ones")
}

func TestAKeyDeletedWhileItsRenewalWaitsAtAProxyIsBackAtOnce(t *testing.T) {
	t.Parallel()
	s, _, pubs := publishBehindProxy(t, etcdtest.Start(t), 3)
	var away []time.Duration
	for range 12 {
		// A renewal is due after a third of the TTL at the latest. This one has been under way for a while.
		var late *instance
		isLate := func(pub *instance) bool {
			late = pub
			return time.Until(pub.Status().Until) < proxyTTL-proxyTTL/3-50*time.Millisecond
		}
		etcdtest.RequireSoon(t, 4*proxyTTL, func() bool { return slices.ContainsFunc(pubs, isLate) }, "every renewal is answered at once")
		s.remove(late)
		away = append(away, s.requireTrue(s.begin("deleted %s", late.key()), atOnce, pubs...))
	}
	s.requireMostly(100*time.Millisecond, "deleted", away)
	s.requireOneLease(pubs...)
}

// After a longer outage it is the client of the proxy that takes its time: it waits for up to two minutes before it dials
// etcd again. Nobody in front of the proxy can change that.
func TestAQuickRestartOfEtcdBehindAProxyNeverTakesTheKeyAway(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartProcess(t)
	s, _, pubs := publishBehindProxy(t, etcd, 10)
	for range 3 {
		etcd.Kill()
		time.Sleep(500 * time.Millisecond)
		etcd.Start()
		back := s.begin("etcd is back")
		for _, pub := range pubs {
			etcdtest.RequireSoon(t, 2*proxyTTL, func() bool { return pub.Status().Until.After(back.Add(proxyTTL)) }, "renewed since")
		}
		s.figure("etcd was restarted: all are renewed", s.requireTrue(back, 2*proxyTTL, pubs...))
	}
	s.requireNeverAbsent(pubs...)
	s.requireOneLease(pubs...)
	s.remove(pubs[0])
	s.figure("deleted after that", s.requireTrue(s.begin("deleted"), proxyTTL/2, pubs...))
}
