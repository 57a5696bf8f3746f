package discov_test

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Faults that never take a key away, however long they last.

// A keeping is such a fault.
type keeping struct {
	on           func(*testing.T, ...etcdtest.Option) *scene
	etcd         []etcdtest.Option
	tls, account bool
	n            int // how many Publishers there are, with ids; one where zero
	opts         []discov.PubOption
	// fault begins, and returns when all is well again.
	fault func(*scene)
}

// keepings are those faults, by what they are.
func keepings() map[string]keeping {
	quick := []etcdtest.Option{etcdtest.QuickTicks()}
	all := map[string]keeping{
		"restarts, with an id":        {on: onProcess, opts: withID(shortTTL), fault: restarts},
		"restarts, with the lease ID": {on: onProcess, opts: withTTL(shortTTL), fault: restarts},
		"restarts, with an exact key": {on: onProcess, opts: append(withTTL(shortTTL), discov.WithExactKey()), fault: restarts},
		"quick restarts in a row": {on: onProcess, etcd: quick, opts: withID(shortTTL), fault: func(s *scene) {
			for i := range 8 {
				if i%2 == 0 {
					s.process.Kill()
				} else {
					s.process.Stop()
				}
				s.process.Start()
			}
			s.requireBack("after eight restarts")
		}},
		"latency that jumps": {on: onPath, opts: withID(6 * time.Second), fault: func(s *scene) {
			for _, latency := range []time.Duration{300 * time.Millisecond, 0, 800 * time.Millisecond, 10 * time.Millisecond, 500 * time.Millisecond, 0} {
				s.path.Latency(latency)
				s.begin("latency of %v each way", latency)
				time.Sleep(3 * time.Second)
			}
			s.requireBack("latency")
		}},
		"latency that comes and goes": {on: onPath, n: 5, opts: withTTL(5 * time.Second), fault: func(s *scene) {
			for i := range 8 {
				s.path.Latency(time.Duration(i%2) * 400 * time.Millisecond)
				time.Sleep(1500 * time.Millisecond)
			}
			s.path.Latency(0)
		}},
		"a connection of ten that goes deaf":                   {on: onPath, n: 10, opts: withTTL(4 * time.Second), fault: goesDeafTwice},
		"a connection that goes deaf, with account and TLS":    {on: onPath, tls: true, account: true, opts: withID(4 * time.Second), fault: goesDeafTwice},
		"a spare that goes deaf as soon as it is there":        {on: onPath, opts: withID(defaultTTL), fault: stallsInARow},
		"replacements that go deaf as well, one after another": {on: onPath, opts: withID(4 * time.Second), fault: replacementsGoDeaf},
		"history that is compacted while connections break":    {on: onPath, n: 5, opts: withTTL(5 * time.Second), fault: compactedInALoop},
		"tokens that expire":                                   {on: onServer, account: true, etcd: []etcdtest.Option{etcdtest.WithTokenTTL(time.Second)}, n: 10, fault: tokensExpire},
		"restarts, with fifty on one account":                  {on: onServer, account: true, n: 50, fault: restartsAuthenticateOnce},
		"a restart, with an account by certificate": {on: onCertificates, opts: withID(2 * time.Second), fault: func(s *scene) {
			time.Sleep(3 * time.Second)
			s.server.Restart()
			s.requireBack("restarted")
		}},
		"a single etcd that is frozen for less than the TTL":     {on: onProcess, opts: withID(defaultTTL), fault: frozenTwice},
		"an etcd that is starved":                                {on: onProcess, opts: withID(defaultTTL), fault: starved},
		"a leader that is killed":                                {on: onProcesses, opts: withID(4 * time.Second), fault: leaderKilledTwice},
		"a request that dies with the leader, and is made again": {on: onFollower, etcd: quick, opts: append(withID(defaultTTL), discov.WithTimeout(10*time.Second)), fault: diesWithTheLeader},
		"a quorum that is lost for twice the TTL":                {on: onProcesses, opts: withID(4 * time.Second), fault: quorumLost},
		"members that are cut off from their peers":              {on: onCluster, opts: withID(4 * time.Second), fault: cutOffFromPeers},
		"members that are replaced at other addresses":           {on: onProcesses, opts: withID(4 * time.Second), fault: membersReplaced},
	}
	for _, ttl := range []time.Duration{4 * time.Second, 6 * time.Second, 10 * time.Second} {
		for when, after := range map[string]time.Duration{"at once": 0, "before a renewal": ttl/3 - ttl/24} {
			all[fmt.Sprintf("a connection that goes deaf %s, TTL %v", when, ttl)] = keeping{on: onPath, opts: withID(ttl), fault: func(s *scene) {
				time.Sleep(after)
				s.path.DeafenCurrent()
				s.begin("deaf")
			}}
		}
	}
	return all
}

func TestNoneOfTheseFaultsTakesAKeyAway(t *testing.T) {
	t.Parallel()
	for name, k := range keepings() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k.requireKept(t)
		})
	}
}

// requireKept demands that the keys were there all the time, each under one lease, in the fault and for so long after it that
// a lease which is not renewed ends.
func (k keeping) requireKept(t *testing.T) {
	t.Helper()
	s := guarded(t, k.on, k.tls, k.account, k.etcd...)
	if k.n == 0 {
		s.publish("a:1", k.opts...)
	} else {
		s.publishSeveral(k.n, k.opts...)
	}
	k.fault(s)
	time.Sleep(s.ttl() + restartLag)
	s.requireTrue(time.Now(), 0, s.instances...)
	s.requireNeverAbsent(s.instances...)
	s.requireOneLease(s.instances...)
	if s.path != nil {
		s.requireOneConnection()
	}
}

// requireOneConnection demands that connections that were replaced, or tried, are closed.
func (s *scene) requireOneConnection() {
	s.t.Helper()
	etcdtest.RequireSoon(s.t, atOnce, func() bool { return s.path.Connections() == 1 }, "one connection")
}

func (s *scene) ttl() time.Duration { return s.instances[0].Status().TTL }

func restarts(s *scene) {
	for _, down := range []time.Duration{0, s.ttl() / 2, 2 * s.ttl()} {
		s.process.Kill()
		s.begin("killed for %v", down)
		time.Sleep(down)
		s.process.Start()
		s.requireBack("restart after %v", down)
	}
}

// onCertificates plays on an etcd that takes the name in a certificate for an account.
func onCertificates(t *testing.T, _ ...etcdtest.Option) *scene {
	t.Helper()
	ca := etcdtest.NewCA(t)
	s := onServer(t, etcdtest.WithServerTLS(ca.Issue(t)), etcdtest.WithAuth("svc", "pass"))
	s.opts = append(s.opts, filesOf(ca.Issue(t, etcdtest.Named("svc"))))
	return s
}

func goesDeafTwice(s *scene) {
	for range 2 {
		s.requireOneConnection()
		s.path.DeafenCurrent()
		s.begin("deaf")
		time.Sleep(s.ttl() + 2*time.Second)
		s.requireTrue(time.Now(), 0, s.instances...)
	}
}

// stallsInARow makes the first replacement deaf as soon as it is there, while it is being asked or shortly after.
func stallsInARow(s *scene) {
	pub := s.instances[0]
	s.path.DeafenCurrent()
	s.begin("deaf")
	until := pub.Status().Until
	for s.path.Connections() < 2 && pub.Status().Until.Equal(until) {
		time.Sleep(100 * time.Microsecond)
	}
	s.path.DeafenCurrent()
	s.begin("the spare is deaf")
}

func replacementsGoDeaf(s *scene) {
	pub := s.instances[0]
	for range 3 {
		s.path.DeafenCurrent()
		s.begin("deaf")
		until := pub.Status().Until
		etcdtest.RequireSoon(s.t, s.ttl(), func() bool { return pub.Status().Until.After(until) }, "a renewal over another connection")
	}
}

func compactedInALoop(s *scene) {
	for i := range 60 {
		require.NoError(s.t, s.instances[i%len(s.instances)].Update(s.t.Context(), fmt.Sprint(i)))
		s.put("noise", strconv.Itoa(i))
		s.server.Compact(s.t)
		if i%3 == 0 {
			s.path.Reset()
			s.put("noise", "more")
			s.server.Compact(s.t)
		}
	}
}

func tokensExpire(s *scene) {
	const lasts = 15
	before := s.server.Requests()
	time.Sleep(lasts * time.Second)
	asked := grown(before, s.server.Requests())
	s.t.Logf("figure: in %d s with tokens of 1 s: %v", lasts, asked)
	assert.LessOrEqual(s.t, asked["Authenticate"], lasts)
}

func restartsAuthenticateOnce(s *scene) {
	assert.LessOrEqual(s.t, s.server.Requests()["Authenticate"], 2, "first registrations")
	for range 3 {
		before := s.server.Requests()
		s.server.Restart()
		time.Sleep(5 * time.Second)
		asked := grown(before, s.server.Requests())
		s.t.Logf("figure: after a restart %v", asked)
		assert.LessOrEqual(s.t, asked["Authenticate"], 2)
	}
}

func frozenTwice(s *scene) {
	for range 2 {
		s.process.Freeze()
		s.begin("frozen")
		time.Sleep(6 * time.Second)
		s.process.Thaw()
		s.requireBack("thawed within the TTL")
	}
}

func starved(s *scene) {
	for began := s.begin("starved"); time.Since(began) < 20*time.Second; {
		s.process.Freeze()
		time.Sleep(900 * time.Millisecond)
		s.process.Thaw()
		time.Sleep(100 * time.Millisecond)
	}
	s.requireBack("no longer starved")
}

func leaderKilledTwice(s *scene) {
	for range 2 {
		leader := s.processes.Leader()
		leader.Kill()
		s.begin("the leader is killed")
		time.Sleep(s.ttl() + expiryLag)
		s.requireNeverAbsent(s.instances...)
		leader.Start()
		s.requireBack("the leader is back")
	}
}

func onFollower(t *testing.T, opts ...etcdtest.Option) *scene {
	t.Helper()
	s := onProcesses(t, opts...)
	s.endpoints = s.processes.Followers()[0].Endpoints()
	return s
}

func diesWithTheLeader(s *scene) {
	pub := s.instances[0]
	s.processes.Leader().Kill()
	s.begin("the leader is killed")
	// Not the 5 s of a request.
	require.NoError(s.t, pub.updateIn(3*time.Second, "a:2"))
	s.requireTrue(time.Now(), 0, pub)
}

func quorumLost(s *scene) {
	s.processes.Members[0].Kill()
	s.processes.Members[1].Kill()
	s.begin("two are killed")
	time.Sleep(2 * s.ttl())
	s.processes.Start()
	s.waitForQuorum()
	s.requireBack("a quorum again")
}

func cutOffFromPeers(s *scene) {
	for i, member := range s.cluster.Members {
		etcdtest.Isolate(s.cluster, member)
		s.begin("member %d is cut off, the leader: %v", i, s.cluster.Leader() == member)
		time.Sleep(s.ttl() + 2*time.Second)
		s.requireNeverAbsent(s.instances...)
		etcdtest.Rejoin(s.cluster, member)
		s.waitForQuorum()
		s.requireTrue(s.begin("rejoined"), 2*atOnce, s.instances...)
	}
}

func membersReplaced(s *scene) {
	for _, member := range []*etcdtest.Process{s.processes.Followers()[0], s.processes.Leader()} {
		s.begin("replaced, the leader: %v", member == s.processes.Leader())
		s.processes.Replace(member)
		time.Sleep(s.ttl() + expiryLag) // a lease that nobody renewed since would have ended
		s.requireTrue(time.Now(), 0, s.instances...)
	}
}
