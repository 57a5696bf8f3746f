package discov_test

import (
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Slow answers and far etcds.

// A farPath is a path whose latency is what it says: chunks are on their way all at once, where those of etcdtest.Path
// wait for one another, which makes half as much again of a round trip.
type farPath struct {
	listener net.Listener
	each     atomic.Int64 // the latency each way, a time.Duration
	dials    atomic.Int64
	carrying sync.WaitGroup
}

func newFarPath(t *testing.T, target string) *farPath {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	p := &farPath{listener: listener}
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

// delay makes each way take so long.
func (p *farPath) delay(each time.Duration) { p.each.Store(int64(each)) }

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
		"500 ms each way, TLS":     {each: 500 * time.Millisecond, timeout: 8 * time.Second, ttl: defaultTTL, tls: true},
		"500 ms each way, account": {each: 500 * time.Millisecond, timeout: 8 * time.Second, ttl: defaultTTL, account: true},
		"500 ms each way, TTL 5 s": {each: 500 * time.Millisecond, timeout: defaultTimeout, ttl: 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.requireKept(t)
		})
	}
}

// renewalLag is how long it may be unknown whether the lease was renewed: a beat is skipped while a renewal is under way, so
// where a round trip takes longer than a beat, the next answer may come a round trip late. etcd has the request long before.
func (c farEtcd) renewalLag() time.Duration {
	if roundTrip := 2 * c.each; roundTrip > c.ttl/3 {
		return roundTrip
	}
	return 0
}

// requireKept registers over the latency, and demands that the key is kept and that every call does its work in its bound.
func (c farEtcd) requireKept(t *testing.T) {
	t.Helper()
	s := guarded(t, onFar, c.tls, c.account)
	s.far.delay(c.each)
	pub := s.newInstance("a:1", append(withID(c.ttl), discov.WithTimeout(c.timeout))...)
	require.NoError(t, s.bounded(c.timeout, pub.start))
	require.True(t, s.Present(t, pub.key()))
	before, dialled := s.server.Requests(), s.far.dials.Load()
	time.Sleep(c.ttl*5/4 + time.Second)
	s.requireTrue(time.Now(), c.renewalLag(), pub)
	dialled = s.far.dials.Load() - dialled
	t.Logf("figure: in %v asked %v; %d dials", c.ttl*5/4+time.Second, grown(before, s.server.Requests()), dialled)
	assert.LessOrEqual(t, dialled, int64(1), "a link that is slow is dialled again and again")
	require.NoError(t, pub.updateIn(c.timeout, "new"))
	s.requireNeverAbsent(pub)
	require.NoError(t, pub.pauseIn(c.timeout))
	require.False(t, s.Present(t, pub.key()))
	require.NoError(t, pub.resumeIn(c.timeout))
	require.True(t, s.Present(t, pub.key()))
	require.NoError(t, pub.stopIn(c.timeout))
	s.requireGone(time.Now(), 0)
}

func TestADeletedKeyDoesNotWaitForASlowRenewal(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second
	s := onServer(t)
	pub := s.publish("a:1", discov.WithId(7), discov.WithTTL(ttl),
		discov.Dialling(lateOn("LeaseKeepAlive", 1500*time.Millisecond)))
	var away []time.Duration
	for range 12 {
		time.Sleep(rand.N(ttl / 3)) // at a random moment between two renewals
		s.remove(pub)
		away = append(away, s.requireTrue(s.begin("deleted"), atOnce, pub))
	}
	s.requireMostly(100*time.Millisecond, "deleted", away)
	s.requireOneLease(pub)
}

// A pace is an etcd that was quick, and answers everything after 1.5 s from some moment on.
type pace struct {
	*scene
	pub   *instance
	dials *dials
}

func newPace(t *testing.T) *pace {
	t.Helper()
	const ttl = 10 * time.Second
	p := &pace{scene: onFar(t), dials: &dials{}}
	p.pub = p.publish("a:1", append(withID(ttl), discov.Dialling(p.dials.option()))...)
	t.Cleanup(func() { p.far.delay(0) }) // or to stop takes as long
	time.Sleep(ttl/3 + time.Second)      // etcd was quick: a renewal was answered at once
	return p
}

// change makes all round trips take 1.5 s.
func (p *pace) change() {
	p.dials.roundTrip = 1500 * time.Millisecond
	p.far.delay(750 * time.Millisecond)
	p.begin("round trips of 1.5 s from now on")
}

// requireDialled demands that there were at most so many dials in the time that follows.
func (p *pace) requireDialled(atMost int, in time.Duration) {
	p.t.Helper()
	before := p.dials.Load()
	time.Sleep(in)
	n := p.dials.since(before)
	p.t.Logf("FIGURE | %s | dials in %v | %d", p.t.Name(), in, n)
	assert.LessOrEqual(p.t, n, atMost, "an etcd that is slow is dialled again and again: in %v", in)
}

func TestAnEtcdThatHasBecomeSlowIsHardlyDialled(t *testing.T) {
	t.Parallel()
	p := newPace(t)
	p.change()
	p.requireDialled(4, 15*time.Second) // two spares each for two links, while nobody knows that etcd is slow
	p.requireDialled(0, 15*time.Second) // answers come
	p.requireNeverAbsent(p.pub)
	p.requireOneLease(p.pub)
}

func TestAFirstRegistrationOverALongRoundTripTakesOneLease(t *testing.T) {
	t.Parallel()
	for name, account := range map[string]bool{"without an account": false, "with an account": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			requireOneGrantOverALongRoundTrip(t, &dials{roundTrip: longRoundTrip}, account)
		})
	}
}

const longRoundTrip = time.Second

// requireOneGrantOverALongRoundTrip registers, and demands that nothing is asked for twice.
func requireOneGrantOverALongRoundTrip(t *testing.T, far *dials, account bool) {
	t.Helper()
	s := guarded(t, onFar, false, account)
	s.far.delay(longRoundTrip / 2)
	pub := s.publish("a:1", discov.WithId(7), discov.WithTimeout(20*time.Second), discov.Dialling(far.option()))
	s.far.delay(0) // so that Stop is quick
	requests := s.server.Requests()
	assert.Equal(t, 1, requests["LeaseGrant"], "grants")
	assert.Equal(t, 1, requests["Put"], "puts")
	t.Logf("FIGURE | %s | dials | %d", t.Name(), far.Load())
	// A brisk spare gives each try 0.4 s, so it is one or two a second until it is known that etcd is slow.
	assert.LessOrEqual(t, far.since(0), 10, "dials")
	s.requireTrue(time.Now(), 0, pub)
}

// TestAFirstRegistrationOverALongRoundTripTakesOneLeaseAlsoWhereTCPConnectsAtOnce: a tunnel, a proxy or a forwarded port
// near the client accepts before etcd does, so that a connect takes one round trip, not two.
func TestAFirstRegistrationOverALongRoundTripTakesOneLeaseAlsoWhereTCPConnectsAtOnce(t *testing.T) {
	t.Parallel()
	requireOneGrantOverALongRoundTrip(t, &dials{}, false)
}
