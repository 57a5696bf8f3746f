package discov_test

import (
	"fmt"
	"maps"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Outages: etcd is out of reach, and comes back.

// An outage is a fault that begins and ends.
type outage struct {
	on         func(*testing.T, ...etcdtest.Option) *scene
	begin, end func(*scene)
	// renews says that the lease has its whole TTL again at the end.
	renews bool
}

var outages = map[string]outage{
	"killed": {
		on: onProcess, renews: true,
		begin: func(s *scene) { s.process.Kill() },
		end:   func(s *scene) { s.process.Start() },
	},
	"frozen": {
		on:    onProcess,
		begin: func(s *scene) { s.process.Freeze() },
		end:   func(s *scene) { s.process.Thaw() },
	},
	"cut off":   ofPath("cut off"),
	"swallowed": ofPath("swallowed"),
	"lost":      ofPath("lost"),
}

// pathOutages are those of a path.
var pathOutages = map[string]struct{ begin, end func(*etcdtest.Path) }{
	"cut off":   {func(p *etcdtest.Path) { p.Refuse(); p.Reset() }, (*etcdtest.Path).Accept},
	"swallowed": {(*etcdtest.Path).Swallow, (*etcdtest.Path).Heal},
	// Bytes are lost for good, also those of connections that were opened meanwhile.
	"lost": {func(p *etcdtest.Path) { p.DeafenCurrent(); p.Swallow() }, func(p *etcdtest.Path) { p.DeafenCurrent(); p.Heal() }},
}

func ofPath(name string) outage {
	return outage{
		on:    onPath,
		begin: func(s *scene) { pathOutages[name].begin(s.path) },
		end:   func(s *scene) { pathOutages[name].end(s.path) },
	}
}

// unreachable is every way in which KeepAlive may find etcd.
func unreachable() map[string]outage {
	all := maps.Clone(outages)
	delete(all, "killed") // as "cut off"
	all["without a quorum"] = outage{
		on: func(t *testing.T, _ ...etcdtest.Option) *scene { return onProcesses(t, etcdtest.QuickTicks()) },
		begin: func(s *scene) {
			// What a follower passes on to a leader that died just now is lost, and it does not know yet.
			followers := s.processes.Followers()
			s.processes.Leader().Kill()
			followers[0].Kill()
		},
		end: func(s *scene) {
			s.processes.Start()
			s.waitForQuorum()
		},
	}
	return all
}

func TestAnOutageOfAnyLengthHasTheKeyBackAtOnce(t *testing.T) {
	t.Parallel()
	const ttl = shortTTL
	for name, lengths := range map[string][]time.Duration{
		// Around the TTL too: there the renewal that was under way may come too late, or just in time.
		"swallowed": {ttl / 2, ttl - 200*time.Millisecond, ttl, ttl + 300*time.Millisecond, ttl + 600*time.Millisecond, 2 * ttl},
		"lost":      {ttl / 2, 2 * ttl},
		"frozen":    {ttl, ttl + 500*time.Millisecond, 2 * ttl},
	} {
		for _, length := range lengths {
			t.Run(fmt.Sprintf("%s for %v", name, length), func(t *testing.T) {
				t.Parallel()
				s := outages[name].on(t)
				s.publish("a:1", withID(ttl)...)
				outages[name].requireBackAfter(s, length)
			})
		}
	}
}

// requireBackAfter demands that the key is back at once, and for good.
func (o outage) requireBackAfter(s *scene, length time.Duration) {
	s.t.Helper()
	o.begin(s)
	s.begin("the outage begins")
	time.Sleep(length)
	o.end(s)
	s.requireBackForGood(s.begin("it is over, after %v", length), atOnce)
}

// requireBackForGood demands that the key of the one Publisher is there within that time since, and for so long that a lease which is
// not renewed ends. Only that etcd may find the lease expired half a second after an outage: then the key is away for a
// moment.
func (s *scene) requireBackForGood(since time.Time, within time.Duration) {
	s.t.Helper()
	pub := s.instances[0]
	s.figure("back", s.requireTrue(since, within, pub))
	time.Sleep(s.ttl() + expiryLag)
	s.requireTrue(time.Now(), 0, pub)
	if absent, back := s.absence(pub, since); absent > 0 {
		s.figure("absent after the outage", back.Sub(since))
		require.LessOrEqual(s.t, min(absent, back.Sub(since)), within+s.meter.allowance(since, back), "absent again after the outage\n%s", pub)
	}
}

func TestOutagesOfAnyLengthEndWithinASecond(t *testing.T) {
	t.Parallel()
	for name, fault := range pathOutages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := etcdtest.Start(t)
			const outages = 16 // each on a path of its own, so that they end at every moment of the way back
			var paths []*etcdtest.Path
			for range outages {
				paths = append(paths, etcdtest.NewPath(t, etcd.Endpoints()[0]))
			}
			s := newScene(t, etcd)
			var pubs []*instance
			for i, path := range paths {
				pubs = append(pubs, s.publishAt([]string{path.Endpoint()}, "a:1", discov.WithId(int64(i+1)), discov.WithTTL(shortTTL)))
			}
			healed := make([]time.Time, outages)
			var all sync.WaitGroup
			for i, path := range paths {
				all.Go(func() {
					fault.begin(path)
					time.Sleep(shortTTL + 2*expiryLag + time.Duration(i)*4*time.Second/outages)
					fault.end(path)
					healed[i] = time.Now()
				})
			}
			all.Wait()
			s.requireTrue(time.Now(), 4*atOnce, pubs...)
			var took []time.Duration
			for i, pub := range pubs {
				_, back := s.absence(pub, healed[i])
				took = append(took, back.Sub(healed[i]))
				assert.LessOrEqual(t, back.Sub(healed[i]), atOnce+s.meter.allowance(healed[i], back))
			}
			s.requireMostly(atOnce, name, took)
		})
	}
}

func TestAPathThatClosesWhatItAcceptsHasTheKeyBackAtOnce(t *testing.T) {
	t.Parallel()
	s := onPath(t)
	pub := s.publish("a:1", withID(shortTTL)...)
	s.path.Refuse()
	s.path.Reset()
	accepted := closeAtOnce(t, s.path.Endpoint(), 2*shortTTL)
	s.path.Accept()
	s.figure("closed at once", s.requireTrue(s.begin("mended"), atOnce, pub))
	t.Logf("%d connections in %v", accepted, 2*shortTTL)
	require.LessOrEqual(t, accepted, int(2*shortTTL/(100*time.Millisecond)), "polite")
}

// closeAtOnce accepts connections at the address for d, and closes each. It returns how many.
func closeAtOnce(t *testing.T, address string, d time.Duration) (accepted int) {
	t.Helper()
	listener, err := net.Listen("tcp4", address)
	require.NoError(t, err)
	closed := make(chan struct{})
	time.AfterFunc(d, func() {
		listener.Close()
		close(closed)
	})
	for {
		conn, err := listener.Accept()
		if err != nil {
			<-closed // the address is free
			return accepted
		}
		accepted++
		conn.Close()
	}
}

func TestAConnectionThatGoesDeafWithNothingUnderWayIsNoticedByAWithdrawal(t *testing.T) {
	t.Parallel()
	s := onPath(t)
	pub := s.publish("a:1", withID(10*time.Second)...)
	s.path.DeafenCurrent()
	require.NoError(t, pub.pauseIn(5*time.Second))
	s.requireGone(time.Now(), 0)
	s.path.DeafenCurrent()
	require.NoError(t, pub.resumeIn(5*time.Second))
	s.requireTrue(time.Now(), 0, pub)
	s.path.DeafenCurrent()
	require.NoError(t, pub.updateIn(5*time.Second, "a:2"))
	s.requireTrue(time.Now(), 0, pub)
	s.path.DeafenCurrent()
	require.NoError(t, pub.stopIn(5*time.Second))
	s.requireGone(time.Now(), 0)
}

// requireNeverAbsentInTime is requireNeverAbsent, but for a machine that was late for an eighth of the lease before: then no
// connection may have lived long enough for a renewal. It reports whether none was absent.
func (s *scene) requireNeverAbsentInTime(of ...*instance) (whole bool) {
	s.t.Helper()
	whole = true
	for _, i := range of {
		ttl := i.Status().TTL
		for _, a := range s.Absences(i.key()) {
			late := s.meter.lateness(a.From.Add(-ttl), a.From)
			s.t.Logf("%s: %v, before which the machine was late for %v", i.key(), a, late)
			require.GreaterOrEqual(s.t, late, ttl/8, "%s", i)
			whole = false
		}
	}
	return whole
}

func TestResetsEveryQuarterSecondNeverCostAKey(t *testing.T) {
	t.Parallel()
	const resets = 40
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
			s := guarded(t, onPath, c.secure, c.secure)
			pubs := s.publishSeveral(5, discov.WithTTL(c.ttl))
			looks := 0
			if c.secure {
				looks = resets
			}
			before, keys, most := s.server.Requests(), s.Keys(t), 0
			for range resets {
				s.path.Reset()
				most = max(most, s.mostLeases(250*time.Millisecond))
			}
			asked, after := grown(before, s.server.Requests()), s.Keys(t)
			whole := s.requireNeverAbsentInTime(pubs...)
			for _, pub := range pubs {
				require.NoError(t, pub.updateIn(defaultTimeout, "new"))
			}
			t.Logf("figure: %d leases at most; in 10 s asked %v", most, asked)
			if whole {
				assert.Equal(t, len(pubs), most, "leases while resetting")
				assert.Equal(t, keys, after, "keys that were right were written")
				assert.LessOrEqual(t, asked["Txn"], looks, "looks whether etcd was restored, one for each connection of an account")
			}
			s.requireTrue(time.Now(), 0, pubs...)
		})
	}
}
