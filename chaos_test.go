package discov_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
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
	for _, members := range []int{1, 3} {
		t.Run(fmt.Sprintf("on %d of etcd", members), func(t *testing.T) {
			t.Parallel()
			c := newChaos(t, members)
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
	deaf   time.Time // when connections were last made deaf: until they are replaced, nothing is heard of what follows
	nextID int64
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

var disasters = []disaster{
	{"kill one", false, func(c *chaos, i int) func() {
		c.group.Members[i].Kill()
		return c.group.Members[i].Start
	}},
	{"kill all", false, func(c *chaos, _ int) func() {
		for _, m := range c.group.Members {
			m.Kill()
		}
		return c.group.Start
	}},
	{"freeze one", false, func(c *chaos, i int) func() {
		c.group.Members[i].Freeze()
		return c.group.Members[i].Thaw
	}},
	{"wipe", false, func(c *chaos, _ int) func() {
		c.group.Wipe()
		return nil
	}},
	{"swallow on one path", false, func(c *chaos, i int) func() {
		c.paths[i].Swallow()
		return c.paths[i].Heal
	}},
	{"swallow on all paths", false, func(c *chaos, _ int) func() {
		for _, p := range c.paths {
			p.Swallow()
		}
		return func() {
			for _, p := range c.paths {
				p.Heal()
			}
		}
	}},
	{"refuse on all paths, and reset", false, func(c *chaos, _ int) func() {
		for _, p := range c.paths {
			p.Refuse()
			p.Reset()
		}
		return func() {
			for _, p := range c.paths {
				p.Accept()
			}
		}
	}},
	{"deafen every connection for ever", true, func(c *chaos, _ int) func() {
		for _, p := range c.paths {
			p.DeafenCurrent()
		}
		c.deaf = time.Now()
		return nil
	}},
	{"reset every connection", true, func(c *chaos, _ int) func() {
		for _, p := range c.paths {
			p.Reset()
		}
		return nil
	}},
	{"latency", true, func(c *chaos, i int) func() {
		c.paths[i].Latency(time.Duration(10+c.random.IntN(100)) * time.Millisecond)
		return func() { c.paths[i].Latency(0) }
	}},
	{"no space", true, func(c *chaos, _ int) func() {
		c.group.NoSpace(c.t)
		return func() { c.group.Disarm(c.t) }
	}},
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
			if !i.paused {
				_, _ = c.group.Client(c.t).Put(c.t.Context(), i.key(), "by hand")
			}
		}
		return nil
	}},
}

func newChaos(t *testing.T, members int) *chaos {
	t.Helper()
	c := &chaos{
		group:  etcdtest.StartProcessCluster(t, members),
		random: rand.New(rand.NewPCG(*chaosSeed, uint64(members))),
	}
	for _, m := range c.group.Members {
		c.paths = append(c.paths, etcdtest.NewPath(t, m.Endpoints()[0]))
	}
	c.scene = newScene(t, c.group)
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
	opts := []discov.PubOption{discov.WithTTL(chaosTTL)}
	if c.nextID++; c.nextID%2 == 0 {
		opts = append(opts, discov.WithId(c.nextID))
	}
	c.live = append(c.live, c.start(opts))
}

func (c *chaos) start(opts []discov.PubOption) *chaosInstance {
	var endpoints []string
	for _, p := range c.paths {
		endpoints = append(endpoints, p.Endpoint())
	}
	return &chaosInstance{instance: c.publish(endpoints, fmt.Sprintf("v%d", c.random.IntN(1000)), opts...), opts: opts}
}

// round makes one fault, for up to two and a half TTLs, with calls of users meanwhile.
func (c *chaos) round(n int) {
	d := disasters[c.random.IntN(len(disasters))]
	lasts := time.Duration(c.random.Int64N(int64(5 * chaosTTL / 2)))
	for _, i := range c.live {
		i.touched = false
	}
	began := time.Now()
	c.tell("round %d: %s, for %v", n, d.name, lasts.Round(time.Millisecond))
	mend := d.strike(c, c.random.IntN(len(c.paths)))
	if mend != nil {
		c.callUntil(began.Add(lasts))
		c.tell("mend")
		mend()
	}
	c.Keys(c.t) // etcd answers
	c.requireAsAsked(time.Now())
	if d.gentle {
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
			if took := time.Since(began); took > bound+callSlack {
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
		wrong, within := c.wrong(there), chaosBack
		if wrong == "" {
			c.tell("all true after %v", time.Since(since).Round(time.Millisecond))
			return
		}
		if strings.Contains(wrong, "leases") {
			// A grant that was under way for long may be applied after its lease was revoked: no key, and gone in a TTL.
			within = chaosTTL + expiryLag
		}
		if time.Since(c.deaf) < chaosTTL {
			within += chaosTTL / 2
		}
		if time.Since(since) > within {
			for _, i := range c.live {
				c.tell("%s", i)
			}
			c.t.Fatalf("not true within %v: %s", within, wrong)
		}
		time.Sleep(10 * time.Millisecond)
	}
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
