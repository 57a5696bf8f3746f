package discov_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
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

var (
	chaosSeed   = flag.Uint64("chaos.seed", 1, "what the random schedule of TestChaos follows from")
	chaosRounds = flag.Int("chaos.rounds", 4, "how many faults TestChaos makes on each etcd")
)

const (
	chaosTTL        = 4 * time.Second
	chaosPublishers = 8
	// chaosBack is how soon after a fault all must be true again: at once, and what is due to a machine with two cores
	// that has just started three etcds.
	chaosBack = atOnce + 500*time.Millisecond
)

// TestChaos breaks a real etcd and the way to it at random, while Publishers are paused, resumed, updated and replaced,
// and demands after each fault that etcd holds what was asked for last: these keys, values and leases and no others.
func TestChaos(t *testing.T) {
	t.Parallel()
	for name, etcd := range map[string]struct {
		members int
		account bool
	}{
		"on one member":                {members: 1},
		"on three members":             {members: 3},
		"on one member, by an account": {members: 1, account: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newChaos(t, etcd.members, etcd.account)
			for round := range *chaosRounds {
				c.round(round)
			}
		})
	}
}

// chaos is one etcd, the paths to its members, and the Publishers that live through what is done to them.
type chaos struct {
	*scene
	group  *etcdtest.ProcessCluster
	paths  []*etcdtest.Path
	random *rand.Rand
	live   []*chaosInstance
	story  []string
	nextID int64

	saved    bool      // whether there is a copy of etcd's data
	restored bool      // whether it was put back in this round, with leases of others that end by themselves
	deaf     time.Time // when connections were last made deaf: until they are replaced, nothing is heard of what follows
}

// chaosInstance is a Publisher and what was asked of it last.
type chaosInstance struct {
	*instance
	opts    []discov.PubOption
	paused  bool
	touched bool // in this round
}

// A disaster breaks something, and returns how to mend it, nil where there is nothing to mend.
type disaster struct {
	name string
	// gentle ones take no key away, however long they last.
	gentle bool
	strike func(c *chaos, victim int) (mend func())
}

// disasters are in an order in which any two can strike together: first those that need an etcd that answers.
var disasters = []disaster{
	{"revoke every lease", false, func(c *chaos, _ int) func() {
		for _, i := range c.live {
			_, _ = c.group.Client(c.t).Revoke(c.t.Context(), i.Status().Lease)
		}
		return nil
	}},
	{"delete every key, compact, reset", false, func(c *chaos, _ int) func() {
		_, _ = c.group.Client(c.t).Delete(c.t.Context(), prefix, clientv3.WithPrefix())
		for _, p := range c.paths {
			p.Reset()
		}
		c.group.Compact(c.t)
		return nil
	}},
	{"overwrite every key without a lease", true, func(c *chaos, _ int) func() {
		for _, i := range c.live {
			there := clientv3.Compare(clientv3.CreateRevision(i.key()), ">", 0)
			_, err := c.group.Client(c.t).Txn(c.t.Context()).If(there).Then(clientv3.OpPut(i.key(), "by hand")).Commit()
			require.NoError(c.t, err)
		}
		c.requireAsAsked(time.Now()) // a key without a lease stays for ever where its Publisher is paused or gets another lease
		return nil
	}},
	{"no space", true, func(c *chaos, _ int) func() {
		c.group.NoSpace(c.t)
		return func() { c.group.Disarm(c.t) }
	}},
	{"wipe", false, func(c *chaos, _ int) func() {
		c.group.Wipe()
		return nil
	}},
	{"restart all, with a copy of the data or with the last one", false, func(c *chaos, _ int) func() {
		if !c.saved || c.random.IntN(2) == 0 {
			c.saved = true
			c.group.Snapshot()
		} else {
			c.group.Restore()
			c.group.Disarm(c.t) // the copy may be from a time without space
			c.restored = true
		}
		return nil
	}},
	{"freeze one", false, func(c *chaos, i int) func() {
		c.group.Members[i].Freeze()
		return c.group.Members[i].Thaw
	}},
	{"freeze all", false, onAll(members, (*etcdtest.Process).Freeze, (*etcdtest.Process).Thaw)},
	{"kill one", false, func(c *chaos, i int) func() {
		c.group.Members[i].Kill()
		return func() {
			for _, m := range c.group.Members {
				m.Thaw() // those frozen as well: Start waits for a quorum
			}
			c.group.Members[i].Start()
		}
	}},
	{"kill all", false, func(c *chaos, _ int) func() {
		for _, m := range c.group.Members {
			m.Kill()
		}
		return c.group.Start
	}},
	{"swallow on one path", false, func(c *chaos, i int) func() {
		c.paths[i].Swallow()
		return c.paths[i].Heal
	}},
	{"swallow on all paths", false, onAll(paths, (*etcdtest.Path).Swallow, (*etcdtest.Path).Heal)},
	{"refuse on all paths, and reset", false, onAll(paths, func(p *etcdtest.Path) { p.Refuse(); p.Reset() }, (*etcdtest.Path).Accept)},
	{"reset every connection", true, onAll(paths, (*etcdtest.Path).Reset, nil)},
	{"latency", true, func(c *chaos, i int) func() {
		c.paths[i].Latency(time.Duration(10+c.random.IntN(100)) * time.Millisecond)
		return func() { c.paths[i].Latency(0) }
	}},
	{"deafen every connection for ever", true, func(c *chaos, _ int) func() {
		c.deaf = time.Now()
		return onAll(paths, (*etcdtest.Path).DeafenCurrent, nil)(c, 0)
	}},
}

func members(c *chaos) []*etcdtest.Process { return c.group.Members }

func paths(c *chaos) []*etcdtest.Path { return c.paths }

// onAll is the strike of a disaster that meets all of a kind alike. mend may be nil.
func onAll[T any](kind func(*chaos) []T, strike, mend func(T)) func(*chaos, int) func() {
	return func(c *chaos, _ int) func() {
		for _, one := range kind(c) {
			strike(one)
		}
		if mend == nil {
			return nil
		}
		return func() {
			for _, one := range kind(c) {
				mend(one)
			}
		}
	}
}

func newChaos(t *testing.T, members int, account bool) *chaos {
	t.Helper()
	c, all := &chaos{}, []discov.PubOption{discov.WithTTL(chaosTTL)}
	var opts []etcdtest.Option
	stream := uint64(members)
	if account {
		stream += 10
		opts = append(opts, etcdtest.WithAuth("svc", "pass"), etcdtest.WithTokenTTL(2*time.Second))
		all = append(all, withAccount)
	}
	c.random = rand.New(rand.NewPCG(*chaosSeed, stream))
	c.group = etcdtest.StartProcessCluster(t, members, opts...)
	for _, m := range c.group.Members {
		c.paths = append(c.paths, etcdtest.NewPath(t, m.Endpoints()[0]))
	}
	c.scene = newScene(t, c.group)
	c.opts, c.endpoints = all, nil
	for _, path := range c.paths {
		c.endpoints = append(c.endpoints, path.Endpoint())
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, line := range c.story {
				t.Log(line)
			}
		}
	})
	for range chaosPublishers {
		c.add()
	}
	return c
}

func (c *chaos) tell(format string, args ...any) {
	c.story = append(c.story, clock(time.Now())+" "+fmt.Sprintf(format, args...))
}

// add starts a Publisher; every other one has an id.
func (c *chaos) add() {
	var opts []discov.PubOption
	if c.nextID++; c.nextID%2 == 0 {
		opts = append(opts, discov.WithId(c.nextID))
	}
	c.live = append(c.live, c.start(opts))
}

func (c *chaos) start(opts []discov.PubOption) *chaosInstance {
	return &chaosInstance{instance: c.publish(fmt.Sprintf("v%d", c.random.IntN(1000)), opts...), opts: opts}
}

// round makes one fault, or two at once, for up to two and a half TTLs, with calls of users meanwhile.
func (c *chaos) round(n int) {
	strikes := []int{c.random.IntN(len(disasters))}
	if second := c.random.IntN(len(disasters)); c.random.IntN(3) == 0 && second != strikes[0] {
		strikes = append(strikes, second)
		slices.Sort(strikes)
	}
	lasts := time.Duration(c.random.Int64N(int64(5 * chaosTTL / 2)))
	for _, i := range c.live {
		i.touched = false
	}
	c.restored = false
	c.Absences(prefix) // the observer knows all until now
	began, gentle := time.Now(), true
	var mends []func()
	for _, i := range strikes {
		d := disasters[i]
		c.tell("round %d: %s, for %v", n, d.name, lasts.Round(time.Millisecond))
		if mend := d.strike(c, c.random.IntN(len(c.paths))); mend != nil {
			mends = append(mends, mend)
		}
		gentle = gentle && d.gentle
	}
	if len(mends) > 0 {
		c.callUntil(began.Add(lasts))
	}
	for _, mend := range slices.Backward(mends) {
		c.tell("mend")
		mend()
	}
	c.Keys(c.t) // etcd answers
	c.requireAsAsked(time.Now())
	if gentle {
		c.requireUntouchedStayed(began)
	}
	if c.random.IntN(3) == 0 {
		c.replaceOne()
		c.requireAsAsked(time.Now())
	}
}

// callUntil makes calls on random Publishers until the time is up.
func (c *chaos) callUntil(end time.Time) {
	for time.Now().Before(end) {
		var calls sync.WaitGroup
		i := c.live[c.random.IntN(len(c.live))]
		bound := time.Duration(1+c.random.IntN(1000)) * time.Millisecond
		call, value := c.random.IntN(4), fmt.Sprintf("v%d", c.random.IntN(1000))
		i.touched = true
		calls.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), bound)
			defer cancel()
			began := time.Now()
			var err error
			switch call {
			case 0:
				i.paused, err = true, i.PauseContext(ctx)
			case 1, 2:
				i.paused, err = false, i.ResumeContext(ctx)
			case 3:
				err = i.Update(ctx, value)
			}
			c.tell("%s: %s, %v", i.key(), [...]string{"pause", "resume", "resume", "update " + value}[call], err)
			if took := time.Since(began); took > bound+callSlack+c.meter.allowance(began, time.Now()) {
				c.t.Errorf("a call took %v, with a bound of %v", took, bound)
			}
		})
		calls.Wait()
		pause := time.Duration(c.random.IntN(700)) * time.Millisecond
		time.Sleep(min(pause, time.Until(end)))
	}
}

// replaceOne restarts an instance as a rolling update does: with an id, the new one takes the key over first.
func (c *chaos) replaceOne() {
	n := c.random.IntN(len(c.live))
	old := c.live[n]
	if old.paused {
		return
	}
	c.tell("replace %s", old.key())
	c.live[n] = c.start(old.opts)
	require.NoError(c.t, old.StopContext(context.Background()))
}

func (c *chaos) requireAsAsked(since time.Time) {
	var there []*instance
	for _, i := range c.live {
		if !i.paused {
			there = append(there, i.instance)
		}
	}
	for {
		wrong := c.wrongKeys(there)
		if wrong == "" {
			wrong = c.wrongLeases(len(there))
		}
		if wrong == "" {
			c.tell("all true after %v", time.Since(since).Round(time.Millisecond))
			return
		}
		if within := c.allowed(since, wrong); time.Since(since) > within {
			for _, i := range c.live {
				c.tell("%s", i)
			}
			c.t.Fatalf("not true within %v: %s", within, wrong)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// allowed is how long after since something may be wrong.
func (c *chaos) allowed(since time.Time, wrong string) time.Duration {
	within := chaosBack + c.meter.allowance(since, time.Now())
	if since.Sub(c.deaf) < chaosTTL {
		within += chaosTTL / 2
	}
	// A grant that was under way for long may be applied after its lease was revoked: no key, and gone in a TTL. So are the
	// keys of those who have stopped since the copy of the data was made; one with an id waits for its predecessor's to go.
	if strings.Contains(wrong, "leases") || c.restored {
		within += chaosTTL + expiryLag
	}
	if c.restored && strings.Contains(wrong, "conflict") {
		within += time.Minute // a key is taken back from another instance, here a predecessor, twice a minute at most
	}
	return within
}

func (c *chaos) requireUntouchedStayed(began time.Time) {
	for _, i := range c.live {
		if i.touched || i.paused {
			continue
		}
		if gone, _ := c.absence(i.instance, began); gone > 0 {
			c.t.Fatalf("%s was absent for %v\n%s", i.key(), gone, i)
		}
	}
}
