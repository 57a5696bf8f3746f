package discov

import (
	"context"
	"crypto/tls"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/auth"
	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/conn"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

func TestConcurrentFirstUsersDialOnce(t *testing.T) {
	t.Parallel()
	srv, path := quickPath(t)
	var dials atomic.Int32
	slow := WithClientConfig(func(*clientv3.Config) {
		dials.Add(1)
		time.Sleep(50 * time.Millisecond) // so that all of them come meanwhile
	})
	var starts sync.WaitGroup
	for range 30 {
		p := newTestPublisher(t, []string{path.Endpoint()}, slow)
		starts.Go(func() { assert.NoError(t, p.KeepAlive()) })
	}
	starts.Wait()
	require.EqualValues(t, 1, dials.Load())
	require.Equal(t, 1, path.Connections())
	require.Equal(t, 1, srv.Connections())
	awaitLeases(t, srv, 30)
}

func TestADialHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	release := make(chan struct{})
	dialling := make(chan struct{})
	slow := newTestPublisher(t, srv.Endpoints(), WithBackgroundStart(), WithClientConfig(func(*clientv3.Config) {
		close(dialling)
		<-release
	}))
	started := later(slow.KeepAlive)
	<-dialling
	p := newTestPublisher(t, srv.Endpoints())
	requireWithin(t, 2*time.Second, func() { assert.NoError(t, p.KeepAlive()) })
	select {
	case err := <-started:
		assert.NoError(t, err)
	case <-time.After(time.Second):
		assert.Fail(t, "a dial in the background holds KeepAlive up")
	}
	close(release)
	awaitState(t, slow, StatePublished)
}

// TestAConnectionThatGoesDeafUnderTheFirstLoginIsReplacedInTime: a login may take its time, but not all that there is.
func TestAConnectionThatGoesDeafUnderTheFirstLoginIsReplacedInTime(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t, etcdtest.WithAuth("u", "p"))
	for _, ttl := range []time.Duration{4 * time.Second, 7 * time.Second} {
		t.Run(ttl.String(), func(t *testing.T) {
			t.Parallel()
			path := etcdtest.NewPath(t, srv.Endpoints()[0])
			var first sync.Once
			deafen := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
				if method == pb.Auth_Authenticate_FullMethodName {
					first.Do(path.DeafenCurrent)
				}
				return invoke(ctx, method, req, reply, cc, opts...)
			}
			p := newTestPublisher(t, []string{path.Endpoint()}, WithTTL(ttl), WithTimeout(6*time.Second), WithPubEtcdAccount("u", "p"), Dialling(grpc.WithChainUnaryInterceptor(deafen)))
			require.NoError(t, p.KeepAlive())
		})
	}
}

// TestASlowLoginIsMadeOnce: with many logins, an etcd takes long for each. A doubt about the connection must not add more.
func TestASlowLoginIsMadeOnce(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t, etcdtest.WithAuth("u", "p"))
	var slow atomic.Bool
	var logins atomic.Int32
	delay := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if method == pb.Auth_Authenticate_FullMethodName && slow.Load() {
			logins.Add(1)
			backoff.Pause(ctx, 6*time.Second)
		}
		return invoke(ctx, method, req, reply, cc, opts...)
	}
	p := published(t, srv.Endpoints(), WithPubEtcdAccount("u", "p"), Dialling(grpc.WithChainUnaryInterceptor(delay)))
	slow.Store(true)
	srv.Restart()
	require.Eventually(t, func() bool { return logins.Load() > 0 }, eventually, 10*time.Millisecond, "no login")
	require.Eventually(t, func() bool { return srv.Watchers() == 1 }, eventually, 10*time.Millisecond, "it is not back")
	require.EqualValues(t, 1, logins.Load())
	require.Equal(t, 1, p.Stats().Registrations)
}

func TestTheLastReleaseClosesTheConnection(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	var pubs []*Publisher
	for range 3 {
		p := newTestPublisher(t, srv.Endpoints())
		require.NoError(t, p.KeepAlive())
		pubs = append(pubs, p)
	}
	for _, p := range pubs[:2] {
		p.Stop()
	}
	require.Equal(t, 1, srv.Connections())
	require.Equal(t, StatePublished, pubs[2].Status().State)
	pubs[2].Stop()
	requireNothingLeft(t, srv)

	again := newTestPublisher(t, srv.Endpoints())
	require.NoError(t, again.KeepAlive(), "the next one dials anew")
	require.Equal(t, 1, srv.Connections())
}

func TestWhoSharesAConnection(t *testing.T) {
	t.Parallel()
	ca := etcdtest.NewCA(t)
	cert, other := ca.Issue(t), ca.Issue(t)
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	tune := WithClientConfig(func(*clientv3.Config) {})
	type user struct {
		endpoints []string
		opts      []PubOption
	}
	ab := []string{"a:1", "b:1"}
	cases := []struct {
		name        string
		one, second user
		share       bool
	}{
		{"the same endpoints", user{ab, nil}, user{ab, nil}, true},
		{"another order of them", user{ab, nil}, user{[]string{"b:1", "a:1"}, nil}, true},
		{"one of them twice", user{ab, nil}, user{[]string{"b:1", "a:1", "b:1"}, nil}, true},
		{"other settings of the registration", user{ab, nil}, user{ab, []PubOption{WithId(3), WithTTL(time.Second), WithTimeout(time.Second)}}, true},
		{"fewer endpoints", user{ab, nil}, user{ab[:1], nil}, false},
		{"other endpoints", user{ab, nil}, user{[]string{"a:1", "c:1"}, nil}, false},
		{"one account", user{ab, []PubOption{WithPubEtcdAccount("u", "p")}}, user{ab, []PubOption{WithPubEtcdAccount("u", "p")}}, true},
		{"two accounts", user{ab, []PubOption{WithPubEtcdAccount("u", "p")}}, user{ab, []PubOption{WithPubEtcdAccount("v", "p")}}, false},
		{"two passwords", user{ab, []PubOption{WithPubEtcdAccount("u", "p")}}, user{ab, []PubOption{WithPubEtcdAccount("u", "q")}}, false},
		{"user and password that join to the same", user{ab, []PubOption{WithPubEtcdAccount("u", "pq")}}, user{ab, []PubOption{WithPubEtcdAccount("up", "q")}}, false},
		{"an account and none", user{ab, []PubOption{WithPubEtcdAccount("u", "p")}}, user{ab, nil}, false},
		{"the same files", user{ab, []PubOption{filesOf(cert)}}, user{ab, []PubOption{filesOf(cert)}}, true},
		{"other files", user{ab, []PubOption{filesOf(cert)}}, user{ab, []PubOption{filesOf(other)}}, false},
		{
			"the same files, checked and not", user{ab, []PubOption{filesOf(cert)}},
			user{ab, []PubOption{WithPubEtcdTLS(cert.CertFile, cert.KeyFile, cert.CAFile, true)}}, false,
		},
		{"files and none", user{ab, []PubOption{filesOf(cert)}}, user{ab, nil}, false},
		{"one TLS config", user{ab, []PubOption{WithTLSConfig(config)}}, user{ab, []PubOption{WithTLSConfig(config)}}, true},
		{"two TLS configs", user{ab, []PubOption{WithTLSConfig(config)}}, user{ab, []PubOption{WithTLSConfig(config.Clone())}}, false},
		{"one client config", user{ab, []PubOption{tune}}, user{ab, []PubOption{tune}}, true},
		{"two client configs", user{ab, []PubOption{tune}}, user{ab, []PubOption{WithClientConfig(func(*clientv3.Config) {})}}, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry()
			acquire := func(u user) *sharedConn {
				p := NewPublisher(u.endpoints, testKey, testValue, u.opts...)
				require.NoError(t, p.validate())
				c, err := r.acquire(t.Context(), t.Context(), p.opts.target.To(p.endpoints))
				require.NoError(t, err)
				return c
			}
			one, second := acquire(c.one), acquire(c.second)
			require.Equal(t, c.share, one == second)
			r.release(one)
			require.NotEmpty(t, r.conns, "the other still uses its own")
			r.release(second)
			require.Empty(t, r.conns)
		})
	}
}

func TestTwoAccountsHaveAConnectionEach(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t, etcdtest.WithAuth("u", "p"))
	srv.AddUser(t, "v", "q")
	srv.Grant(t, "v", testKey, clientv3.GetPrefixRangeEnd(testKey), clientv3.PermissionType(clientv3.PermReadWrite))
	first := newTestPublisher(t, srv.Endpoints(), WithPubEtcdAccount("u", "p"))
	second := newTestPublisher(t, srv.Endpoints(), WithPubEtcdAccount("v", "q"))
	require.NoError(t, first.KeepAlive())
	require.NoError(t, second.KeepAlive())
	require.Equal(t, 2, srv.Connections())

	wrong := newTestPublisher(t, srv.Endpoints(), WithPubEtcdAccount("u", "wrong"))
	require.Error(t, wrong.KeepAlive(), "nobody rides on another's password")
	first.Stop()
	require.Equal(t, StatePublished, second.Status().State)
	second.Stop()
	requireNothingLeft(t, srv)
}

func TestTheCallersEndpointsAreNeverTouched(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	real := srv.Endpoints()[0]
	endpoints := []string{real, "http://" + real, real, "127.0.0.1:1"}
	given := slices.Clone(endpoints)
	p := newTestPublisher(t, endpoints)
	require.NoError(t, p.KeepAlive())
	require.Equal(t, given, endpoints)

	// Nor does it matter what the caller does to it.
	late := newTestPublisher(t, endpoints[:1])
	endpoints[0] = "nonsense"
	require.NoError(t, late.KeepAlive())
}

func TestAFailedDialIsTriedAgainByTheNext(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	var broken atomic.Bool
	broken.Store(true)
	tune := WithClientConfig(func(c *clientv3.Config) {
		if broken.Load() {
			c.Endpoints = nil
		}
	})
	var starts sync.WaitGroup
	for range 10 {
		p := newTestPublisher(t, srv.Endpoints(), tune)
		starts.Go(func() { assert.Error(t, p.KeepAlive()) })
	}
	starts.Wait()
	broken.Store(false)
	require.NoError(t, newTestPublisher(t, srv.Endpoints(), tune).KeepAlive())
	require.Equal(t, 1, srv.Connections())
}

func TestConnectionsComeAndGoUnderStress(t *testing.T) {
	requireNoGoroutineLeft(t)
	srv := quickEtcd(t)
	r := newRegistry()
	accounts := []auth.Login{{}, {User: "u", Pass: "p"}, {User: "v", Pass: "q"}}
	var running sync.WaitGroup
	for range 8 {
		running.Go(func() {
			for range 100 {
				to := conn.Target{Login: accounts[rand.IntN(len(accounts))]}.To(srv.Endpoints())
				c, err := r.acquire(t.Context(), t.Context(), to)
				if !assert.NoError(t, err) {
					return
				}
				assert.Equal(t, to, c.target)
				if rand.IntN(4) == 0 {
					time.Sleep(rand.N(time.Millisecond))
				}
				r.release(c)
			}
		})
	}
	running.Wait()
	require.Empty(t, r.conns)
	requireNobodyThere(t, srv)
}
