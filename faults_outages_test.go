package discov_test

import (
	"fmt"
	"maps"
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
	s.requireBackForGood(s.begin("it is over, after %v", length))
}

// requireBackForGood demands that the key of the one Publisher is there at once since, and for so long that a lease which is
// not renewed ends. Only that etcd may find the lease expired half a second after an outage: then the key is away for a
// moment.
func (s *scene) requireBackForGood(since time.Time) {
	s.t.Helper()
	pub := s.instances[0]
	s.figure("back", s.requireTrue(since, atOnce, pub))
	time.Sleep(s.ttl() + expiryLag)
	s.requireTrue(time.Now(), 0, pub)
	if absent, back := s.absence(pub, since); absent > 0 {
		s.figure("absent after the outage", back.Sub(since))
		require.LessOrEqual(s.t, min(absent, back.Sub(since)), atOnce+s.meter.allowance(since, back), "absent again after the outage\n%s", pub)
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
