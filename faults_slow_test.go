//go:build slow

// The faults that take their time: make chaos.

package discov_test

import (
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestSlowAnOutageOf90SecondsNeverTakesTheKeyAway(t *testing.T) {
	t.Parallel()
	keeping{on: onProcess, opts: withID(defaultTTL), fault: func(s *scene) {
		s.process.Kill()
		s.begin("killed")
		time.Sleep(90 * time.Second)
		s.process.Start()
		s.requireBack("restart after 90 s")
	}}.requireKept(t)
}

func TestSlowAnOutageOfTheDefaultTTLHasTheKeyBackAtOnce(t *testing.T) {
	t.Parallel()
	for name, lengths := range map[string][]time.Duration{
		"swallowed": {2 * defaultTTL},
		"lost":      {2 * defaultTTL},
		"frozen":    {defaultTTL - time.Second, defaultTTL + time.Second, 2 * defaultTTL},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := outages[name].on(t)
			s.publish("a:1", withID(defaultTTL)...)
			for _, length := range lengths {
				outages[name].requireBackAfter(s, length)
			}
		})
	}
}

func TestSlowAFrozenMemberNeverTakesAKeyOfTheDefaultTTLAway(t *testing.T) {
	t.Parallel()
	requireKeptWhileEachIsFrozen(t, onProcesses(t), defaultTTL)
}

func TestSlowAnEtcdThatHasBecomeSlowIsDialledFourTimesAtMost(t *testing.T) {
	t.Parallel()
	p := newPace(t)
	p.change()
	p.requireDialled(4, time.Minute)
	p.requireDialled(0, 30*time.Second)
	p.requireNeverAbsent(p.pub)
	p.requireOneLease(p.pub)
}

// TestSlowAWatchThatWasDeniedIsAskedForAgain: once the key may be read, which is found out every half a minute, losses are
// told at once.
func TestSlowAWatchThatWasDeniedIsAskedForAgain(t *testing.T) {
	t.Parallel()
	const found = 45 * time.Second // a look every 30 s, jittered
	all := clientv3.GetPrefixRangeEnd(prefix)
	for name, taken := range map[string]bool{
		"a role that may only write at first": false,
		"a permission that was taken":         true,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, grant := withUser(t)
			if taken {
				grant(prefix, all, readWrite)
			} else {
				grant(prefix, all, write)
			}
			pub := s.publish("a:1", discov.WithId(7))
			if taken {
				etcdtest.RequireSoon(t, atOnce, func() bool { return s.server.Watchers() == 1 }, "watched")
				s.server.Revoke(t, "svc", prefix, all)
				grant(prefix, all, write)
				// etcd ends no watch for that, so it is made to.
				s.server.Restart()
				s.requireTrue(time.Now(), 2*atOnce, pub)
			}
			time.Sleep(time.Second)
			require.Zero(t, s.server.Watchers(), "it may not watch yet")
			grant(prefix, all, readWrite)
			s.begin("it may read and watch")
			etcdtest.RequireSoon(t, found, func() bool { return s.server.Watchers() == 1 }, "a watch:\n%s", pub)
			s.remove(pub)
			s.requireBack("deleted")
			s.requireOneLease(pub)
		})
	}
}

// TestSlowManyProcessesLogInAfterARestartThoughEachLoginIsSlow is the case of a hundred services with the default cost of a
// password, 60 ms, on a small etcd: all logins together take longer than one may wait.
func TestSlowManyProcessesLogInAfterARestartThoughEachLoginIsSlow(t *testing.T) {
	const n = 60
	// Under the race detector a login takes about as long as one of cost 12 without.
	s := guarded(t, onProcess, false, true, etcdtest.WithBcryptCost(8))
	login := time.Now()
	s.publish("first", discov.Dialling(), discov.WithTimeout(time.Minute))
	one := time.Since(login)
	var all sync.WaitGroup
	for i := range n {
		pub := s.newInstance("a:1", discov.WithId(int64(i+1)), discov.Dialling(), discov.WithTimeout(30*time.Second))
		if i%4 == 3 {
			all.Wait() // four at a time
		}
		all.Go(func() { assert.NoError(t, pub.start()) })
	}
	all.Wait()
	s.process.Restart()
	restarted := s.begin("restarted")
	etcdtest.RequireSoon(t, 2*time.Minute, func() bool { return s.process.Watchers() >= n }, "not all are back: %d of %d, %d Authenticate of %v each",
		s.process.Watchers(), n, s.process.Requests()["Authenticate"], one)
	authenticated := s.process.Requests()["Authenticate"]
	s.figure(fmt.Sprintf("%d processes are back, with %d Authenticate of %v", n, authenticated, one.Round(time.Millisecond)), time.Since(restarted))
	assert.LessOrEqual(t, authenticated, 3*n/2, "logins that were given up and made again")
}

func TestSlowALatencyOfTwoSecondsLosesNoKeyAndKeepsBounds(t *testing.T) {
	t.Parallel()
	farEtcd{each: 2 * time.Second, timeout: 20 * time.Second, ttl: defaultTTL}.requireKept(t)
}

// TestSlowAWriterWhoseKeyWasDeletedPutsItBack: nobody tells one who may neither read nor watch.
func TestSlowAWriterWhoseKeyWasDeletedPutsItBack(t *testing.T) {
	t.Parallel()
	s, grant := withUser(t)
	grant(prefix, clientv3.GetPrefixRangeEnd(prefix), write)
	pub := s.publish("a:1", discov.WithId(1))
	s.remove(pub)
	s.figure("back", s.requireTrue(s.begin("deleted"), 35*time.Second, pub))
}

// TestSlowTheCallersClientMovedToAnotherClusterMovesTheKey: what is open to the old cluster may stay open.
func TestSlowTheCallersClientMovedToAnotherClusterMovesTheKey(t *testing.T) {
	t.Parallel()
	old, new := etcdtest.Start(t), etcdtest.Start(t)
	client := ownClient(t, old.Endpoints()...)
	s := newScene(t, new)
	s.endpoints = nil
	pub := s.publish("a:1", discov.WithId(1), discov.WithClient(client))
	client.SetEndpoints(new.Endpoints()...)
	s.figure("moved", s.requireTrue(s.begin("moved"), 35*time.Second, pub))
	time.Sleep(15 * time.Second)
	s.requireNeverAbsent(pub)
}

// BenchmarkCPUOfAHundredPublishersInAnOutage tells what an outage of 20 s costs the process of the Publishers, in percent
// of a core: with an etcd that is gone, and with one that hangs.
func BenchmarkCPUOfAHundredPublishersInAnOutage(b *testing.B) {
	for name, fault := range map[string]struct{ begin, end func(*etcdtest.Process) }{
		"gone":  {(*etcdtest.Process).Kill, func(p *etcdtest.Process) { p.Start() }},
		"hangs": {(*etcdtest.Process).Freeze, (*etcdtest.Process).Thaw},
	} {
		b.Run(name, func(b *testing.B) {
			etcd := etcdtest.StartProcess(b)
			for i := range 100 {
				p := discov.NewPublisher(etcd.Endpoints(), "svc", "v", discov.WithId(int64(i+1)), discov.Quiet)
				b.Cleanup(p.Stop)
				require.NoError(b, p.KeepAlive())
			}
			for b.Loop() {
				fault.begin(etcd)
				time.Sleep(2 * time.Second)
				before, began := cpu(b), time.Now()
				time.Sleep(20 * time.Second)
				b.ReportMetric(100*(cpu(b)-before).Seconds()/time.Since(began).Seconds(), "%core")
				fault.end(etcd)
			}
		})
	}
}

// cpu is the time that this process, without its children, has had.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
