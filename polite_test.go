package discov_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
)

// What ten Publishers with one account ask of etcd, counted: at rest, and while etcd is ill.

const (
	politeSize = 10
	// restTime sees all that is done every half a minute, jittered.
	restTime = 38 * time.Second
	illTime  = 20 * time.Second
	// mostRenewalStreams is over how many streams renewals go while etcd is slow.
	mostRenewalStreams = 8
	// lateEnough is how late a machine has to be to look like a slow etcd.
	lateEnough = 50 * time.Millisecond
)

// polite is ten Publishers whose requests and dials are counted.
type polite struct {
	*scene
	pubs    []*instance
	dials   *dials
	members []counted

	since       time.Time
	before      map[string]int
	beforeDials int64
}

// What is counted is named by its method, and what etcd does not count here.
const (
	renewed = "LeaseKeepAlive.msg"
	dialled = "dials"
)

// newPolite registers them, and waits until all are watched.
func newPolite(t *testing.T, on func(*testing.T, ...etcdtest.Option) *scene, ttl time.Duration) *polite {
	t.Helper()
	p := &polite{scene: guarded(t, on, false, true), dials: &dials{}}
	if p.server != nil {
		p.members = []counted{p.server}
	} else {
		for _, member := range p.processes.Members {
			p.members = append(p.members, member)
		}
	}
	p.pubs = p.publishSeveral(politeSize, discov.WithTTL(ttl), discov.Dialling(p.dials.option()))
	etcdtest.RequireSoon(t, atOnce, func() bool { return requestsOf(p.members)["Watch.create"] >= politeSize }, "all are watched")
	return p
}

// begin begins to count.
func (p *polite) begin() {
	p.since, p.before, p.beforeDials = time.Now(), requestsOf(p.members), p.dials.Load()
}

// requireAsked demands that no more was asked since begin, and nothing that is not named here. A machine that is late by as much
// as a slow etcd looks like one: then connections may be examined and streams opened, keys read, and renewals made once more.
func (p *polite) requireAsked(what string, atMost map[string]int) {
	p.t.Helper()
	if late := p.meter.lateness(p.since, time.Now()); late >= lateEnough {
		p.t.Logf("the machine was late for %v", late)
		for method := range atMost {
			if method == renewed {
				atMost[method] += politeSize
			} else {
				atMost[method] *= 2
			}
		}
		atMost[dialled] += 2
		atMost["Range"] += politeSize
		atMost["LeaseKeepAlive"] = max(atMost["LeaseKeepAlive"], mostRenewalStreams)
	}
	asked := grown(p.before, requestsOf(p.members))
	asked[dialled] = p.dials.since(p.beforeDials)
	delete(asked, "Watch.msg") // counted by kind
	for _, method := range slices.Sorted(maps.Keys(asked)) {
		p.t.Logf("FIGURE | %s | %s | %s | %d, at most %d", p.t.Name(), what, method, asked[method], atMost[method])
		assert.LessOrEqual(p.t, asked[method], atMost[method], "%s: %s", what, method)
	}
}

// renewalsIn returns how many renewals there are in a time, at most: one a lease and beat, and one that is under way.
func renewalsIn(d, ttl time.Duration) int { return politeSize * (int(d/(ttl/3)) + 2) }

func TestPoliteAtRest(t *testing.T) {
	t.Parallel()
	p := newPolite(t, onServer, defaultTTL)
	p.begin()
	time.Sleep(restTime)
	p.requireAsked("at rest", map[string]int{
		"Txn":            2, // one for all keys, every 30 s
		"LeaseKeepAlive": 1, // if it was not open yet
		renewed:          renewalsIn(restTime, defaultTTL),
	})
}

func TestPoliteInAnOutageAndAfterIt(t *testing.T) {
	t.Parallel()
	const (
		outage = 10 * time.Second
		ttl    = 2 * outage
	)
	p := newPolite(t, onPath, ttl)
	p.begin()
	p.path.Refuse()
	p.path.Reset()
	time.Sleep(outage)
	p.requireAsked("in the outage", map[string]int{
		dialled: 90, // the connection's own and a patient spare's, a second apart at last, and a brisk spare's, four a second
	})
	p.begin()
	p.path.Accept()
	p.requireTrue(p.scene.begin("accepting"), atOnce, p.pubs...)
	time.Sleep(illTime)
	p.requireAsked("after the outage", map[string]int{
		dialled:          3,                // the connection and its spares
		"Authenticate":   1,                // where a spare won without a token
		"Range":          2*politeSize + 4, // each key is read where its watch has ended, as with a move; and questions to those in doubt
		"Txn":            4,                // for all keys, every 30 s; etcd's revision, once on each connection with a token from before
		"Watch":          2,                // once on each connection that was moved to
		"Watch.create":   2 * politeSize,
		"Watch.cancel":   politeSize,
		"LeaseKeepAlive": 2 * mostRenewalStreams,
		renewed:          renewalsIn(illTime, ttl),
	})
	p.requireNeverAbsent(p.pubs...)
}

func TestPoliteOverLongRoundTrips(t *testing.T) {
	t.Parallel()
	p := newPolite(t, onFar, defaultTTL)
	t.Cleanup(func() { p.far.delay(0) })
	p.begin()
	p.far.delay(750 * time.Millisecond)
	time.Sleep(restTime)
	p.requireAsked("over round trips of 1.5 s", map[string]int{
		dialled:          4,  // two spares each for two links, while nobody knows that etcd is slow
		"Authenticate":   1,  // where a spare won without a token
		"Range":          20, // at the change of pace alone: questions to a connection in doubt, and of a token beside none
		"Txn":            6,  // for all keys, every 30 s, and once more beside itself; once for each connection that was moved to
		"Watch":          2,  // once for each connection that was moved to
		"Watch.create":   2 * politeSize,
		"Watch.cancel":   2 * politeSize,
		"LeaseKeepAlive": 2 * mostRenewalStreams, // on two connections; they stay while etcd is slow
		renewed:          renewalsIn(restTime, defaultTTL),
	})
	p.requireNeverAbsent(p.pubs...)
}

func TestPoliteToAFollowerThatLimps(t *testing.T) {
	t.Parallel()
	p := newPolite(t, onProcesses, defaultTTL)
	endWriting := p.writing()
	p.begin()
	endLimp := p.processes.Followers()[0].Limp(40*time.Millisecond, 15*time.Millisecond)
	time.Sleep(illTime)
	endLimp()
	endWriting()
	p.requireAsked("with a follower that limps", map[string]int{
		"Txn":            int(illTime/time.Second) + 3, // one look a second for all, where an answer is older
		"LeaseKeepAlive": 2 * mostRenewalStreams,       // they stay while etcd is slow
		renewed:          renewalsIn(illTime, defaultTTL),
	})
	p.requireNeverAbsent(p.pubs...)
}
