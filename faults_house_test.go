package discov_test

import (
	"crypto/tls"
	"crypto/x509"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Slow answers, far etcds, limits of a rate, and certificates that nobody trusts.

func TestADeletedKeyDoesNotWaitForASlowRenewal(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second
	etcd := etcdtest.Start(t)
	s := newScene(t, etcd)
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7), discov.WithTTL(ttl),
		dialling(lateOn("LeaseKeepAlive", 1500*time.Millisecond)))
	var away []time.Duration
	for range 12 {
		time.Sleep(rand.N(ttl / 3)) // at a random moment between two renewals
		remove(t, etcd, pub.key())
		away = append(away, s.requireTrue(s.begin("deleted"), atOnce, pub))
	}
	s.requireMostly(100*time.Millisecond, "deleted", away)
	s.requireOneLease(pub)
}

// A pace is an etcd that was quick, and answers everything after 1.5 s from some moment on.
type pace struct {
	*scene
	pub   *instance
	path  *farPath
	dials *dials
}

func newPace(t *testing.T) *pace {
	t.Helper()
	const ttl = 10 * time.Second
	etcd := etcdtest.Start(t)
	p := &pace{path: newFarPath(t, etcd.Endpoints()[0], 0), dials: &dials{}}
	p.scene = newScene(t, etcd)
	p.pub = p.publish([]string{p.path.listener.Addr().String()}, "a:1", discov.WithId(7), discov.WithTTL(ttl), dialling(p.dials.option()))
	t.Cleanup(func() { p.path.each.Store(0) }) // or to stop takes as long
	time.Sleep(ttl/3 + time.Second)            // etcd was quick: a renewal was answered at once
	return p
}

// change makes all round trips take 1.5 s.
func (p *pace) change() {
	p.dials.roundTrip = 1500 * time.Millisecond
	p.path.each.Store(int64(750 * time.Millisecond))
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
	for name, opts := range map[string][]discov.PubOption{
		"without an account": nil,
		"with an account":    {discov.WithPubEtcdAccount("svc", "pass")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			requireOneGrantOverALongRoundTrip(t, &dials{roundTrip: longRoundTrip}, opts...)
		})
	}
}

const longRoundTrip = time.Second

// requireOneGrantOverALongRoundTrip registers, and demands that nothing is asked for twice.
func requireOneGrantOverALongRoundTrip(t *testing.T, far *dials, account ...discov.PubOption) {
	t.Helper()
	var serverOpts []etcdtest.Option
	if len(account) > 0 {
		serverOpts = append(serverOpts, etcdtest.WithAuth("svc", "pass"))
	}
	etcd := etcdtest.Start(t, serverOpts...)
	path := newFarPath(t, etcd.Endpoints()[0], longRoundTrip/2)
	s := newScene(t, etcd)
	opts := []discov.PubOption{discov.WithId(7), discov.WithTimeout(20 * time.Second), dialling(far.option())}
	pub := s.publish([]string{path.listener.Addr().String()}, "a:1", append(opts, account...)...)
	path.each.Store(0) // so that Stop is quick
	requests := etcd.Requests()
	assert.Equal(t, 1, requests["LeaseGrant"], "grants")
	assert.Equal(t, 1, requests["Put"], "puts")
	t.Logf("FIGURE | %s | dials | %d", t.Name(), far.Load())
	// A brisk spare gives each try 0.4 s, so it is one or two a second until it is known that etcd is slow.
	assert.LessOrEqual(t, far.since(0), 10, "dials")
	s.requireTrue(time.Now(), 0, pub)
}

// errRateLimit is what a proxy, or etcd's gRPC on ENHANCE_YOUR_CALM, answers to too many requests.
var errRateLimit = status.Error(codes.ResourceExhausted, "rate limit exceeded")

func TestALimitOfTheRateIsTriedAgain(t *testing.T) {
	t.Parallel()
	const some = 3
	etcd := etcdtest.Start(t)
	limit := &refusals{err: errRateLimit}
	path := etcdtest.NewPath(t, etcd.Endpoints()[0])
	s := newScene(t, etcd)
	pub := s.newInstance([]string{path.Endpoint()}, "a:1", discov.WithId(7), dialling(limit.option()))
	requireRefused := func(what string) {
		t.Helper()
		n, of := limit.refused()
		require.Equal(t, some, n, "%s: %v", what, of)
	}

	limit.refuse(some, "Put", "Txn", "Range")
	require.NoError(t, s.bounded(defaultTimeout, pub.start))
	requireRefused("first registration")
	s.requireTrue(time.Now(), 0, pub)

	limit.refuse(some, "LeaseGrant")
	revoke(t, etcd, pub.Status().Lease)
	s.requireTrue(s.begin("revoked"), defaultTimeout, pub)
	requireRefused("another lease")

	limit.refuse(some, "Put", "Txn")
	require.NoError(t, s.bounded(defaultTimeout, func() error { return pub.Update(t.Context(), "a:2") }))
	requireRefused("Update")
	s.requireTrue(time.Now(), 0, pub)

	limit.refuse(some, "Range", "Txn")
	path.Reset() // so that the key is read, and watched anew
	reset := s.begin("reset")
	etcdtest.RequireSoon(t, defaultTimeout, func() bool { n, _ := limit.refused(); return n == some }, "reads that are limited")
	s.requireTrue(reset, defaultTimeout, pub)
	etcdtest.RequireSoon(t, defaultTimeout, func() bool { return pub.Status().Err == nil }, "no error is left:\n%s", pub)
	require.Equal(t, "a:2", pub.Status().Value)

	limit.refuse(some, "LeaseRevoke")
	require.NoError(t, s.bounded(defaultTimeout, func() error { return pub.PauseContext(t.Context()) }))
	requireRefused("Pause")
	s.requireGone(time.Now(), 0)
}

func TestACertificateOfACAThatEtcdDoesNotTrustIsNamed(t *testing.T) {
	t.Parallel()
	ca, foreign := etcdtest.NewCA(t), etcdtest.NewCA(t)
	foreign.Replace(t) // with a name of its own, or Go takes it for one that the server lists
	etcd := etcdtest.Start(t, etcdtest.WithServerTLS(ca.Issue(t)), etcdtest.WithAuth("svc", "pass"))
	cert := foreign.Issue(t)
	cert.CAFile = ca.File // what it trusts itself is right
	inTLS := func(version uint16) discov.PubOption {
		pair, err := tls.LoadX509KeyPair(cert.CertFile, cert.KeyFile)
		require.NoError(t, err)
		pem, err := os.ReadFile(cert.CAFile)
		require.NoError(t, err)
		pool := x509.NewCertPool()
		require.True(t, pool.AppendCertsFromPEM(pem))
		return discov.WithTLSConfig(&tls.Config{
			MinVersion: tls.VersionTLS12, MaxVersion: version, Certificates: []tls.Certificate{pair}, RootCAs: pool,
		})
	}
	account := discov.WithPubEtcdAccount("svc", "pass")
	for name, opts := range map[string][]discov.PubOption{
		"TLS 1.2":                  {inTLS(tls.VersionTLS12)},
		"TLS 1.3":                  {inTLS(tls.VersionTLS13)},
		"TLS 1.2, with an account": {inTLS(tls.VersionTLS12), account},
		"TLS 1.3, with an account": {inTLS(tls.VersionTLS13), account},
		"files":                    {discov.WithPubEtcdTLS(cert.CertFile, cert.KeyFile, cert.CAFile, false)},
		"files, with an account":   {discov.WithPubEtcdTLS(cert.CertFile, cert.KeyFile, cert.CAFile, false), account},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for range 3 { // once in three tries, a write met the server's alert as a broken pipe
				p := unstarted(t, etcd.Endpoints(), "svc", append(opts, discov.WithTimeout(2*time.Second))...)
				err := requireIn(t, 2*time.Second, "KeepAlive", func() error { return start(t, p) })
				require.Error(t, err)
				require.True(t, strings.Contains(err.Error(), "unknown certificate authority") || strings.Contains(err.Error(), "unknown authority"),
					"the cause is not named: %v", err)
				require.ErrorContains(t, p.Status().Err, "unknown")
			}
		})
	}
}

// TestAFirstRegistrationOverALongRoundTripTakesOneLeaseAlsoWhereTCPConnectsAtOnce: a tunnel, a proxy or a forwarded port
// near the client accepts before etcd does, so that a connect takes one round trip, not two.
func TestAFirstRegistrationOverALongRoundTripTakesOneLeaseAlsoWhereTCPConnectsAtOnce(t *testing.T) {
	t.Parallel()
	requireOneGrantOverALongRoundTrip(t, &dials{})
}
