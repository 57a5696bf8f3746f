package discov

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/conn"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

// Validation.

func TestBadInputIsNamed(t *testing.T) {
	t.Parallel()
	good := []string{"127.0.0.1:1"}
	cert := etcdtest.NewCA(t).Issue(t)
	other := etcdtest.NewCA(t).Issue(t)
	noPEM := filepath.Join(t.TempDir(), "no.pem")
	require.NoError(t, os.WriteFile(noPEM, []byte("this is no PEM"), 0o600))
	missing := filepath.Join(t.TempDir(), "missing.pem")
	files := WithPubEtcdTLS(cert.CertFile, cert.KeyFile, cert.CAFile, false)
	config := WithTLSConfig(&tls.Config{MinVersion: tls.VersionTLS12})
	client := etcdlessClient(t)

	cases := []struct {
		name       string
		endpoints  []string
		key, value string
		opts       []PubOption
		want       error
		mentions   string
	}{
		{"no endpoints", nil, "k", "v", nil, ErrEndpoints, ""},
		{"empty endpoints", []string{}, "k", "v", nil, ErrEndpoints, ""},
		{"an empty endpoint", []string{""}, "k", "v", nil, ErrEndpoints, `""`},
		{"an endpoint without a port", []string{"etcd1"}, "k", "v", nil, ErrEndpoints, "etcd1"},
		{"an endpoint without a host", []string{":2379"}, "k", "v", nil, ErrEndpoints, ":2379"},
		{"an endpoint with port 0", []string{"etcd1:0"}, "k", "v", nil, ErrEndpoints, "etcd1:0"},
		{"an endpoint with too high a port", []string{"etcd1:65536"}, "k", "v", nil, ErrEndpoints, "65536"},
		{"an endpoint with a word for a port", []string{"etcd1:client"}, "k", "v", nil, ErrEndpoints, "client"},
		{"an endpoint with a space", []string{" etcd1:2379"}, "k", "v", nil, ErrEndpoints, " etcd1:2379"},
		{"two endpoints in one", []string{"a:1,b:1"}, "k", "v", nil, ErrEndpoints, "a:1,b:1"},
		{"an unknown scheme", []string{"ftp://etcd1:2379"}, "k", "v", nil, ErrEndpoints, "ftp"},
		{"a URL with a path", []string{"http://etcd1:2379/v3"}, "k", "v", nil, ErrEndpoints, "/v3"},
		{"a URL with a user", []string{"http://root:pass@etcd1:2379"}, "k", "v", nil, ErrEndpoints, "etcd1"},
		{"a URL that cannot be parsed", []string{"http://etcd1:%zz"}, "k", "v", nil, ErrEndpoints, "%zz"},
		{"a unix socket without a path", []string{"unix://"}, "k", "v", nil, ErrEndpoints, "unix://"},
		{"one bad among good", []string{"127.0.0.1:1", "bad", "127.0.0.1:2"}, "k", "v", nil, ErrEndpoints, "bad"},
		{"https for some", []string{"https://a:1", "b:1"}, "k", "v", nil, ErrEndpoints, "https"},
		{"no key", good, "", "v", nil, ErrKey, ""},
		{"no value", good, "k", "", nil, ErrValue, `"k"`},
		{"id 0", good, "k", "v", []PubOption{WithId(0)}, ErrID, "0"},
		{"a negative id", good, "k", "v", []PubOption{WithId(-3)}, ErrID, "-3"},
		{"TTL 0", good, "k", "v", []PubOption{WithTTL(0)}, ErrTTL, "0s"},
		{"a negative TTL", good, "k", "v", []PubOption{WithTTL(-time.Second)}, ErrTTL, "-1s"},
		{"a TTL of half a second", good, "k", "v", []PubOption{WithTTL(500 * time.Millisecond)}, ErrTTL, "500ms"},
		{"a TTL of a second and a half", good, "k", "v", []PubOption{WithTTL(1500 * time.Millisecond)}, ErrTTL, "1.5s"},
		{"a TTL above etcd's bound", good, "k", "v", []PubOption{WithTTL(9_000_000_001 * time.Second)}, ErrTTL, ""},
		{"timeout 0", good, "k", "v", []PubOption{WithTimeout(0)}, ErrTimeout, "0s"},
		{"a negative timeout", good, "k", "v", []PubOption{WithTimeout(-time.Second)}, ErrTimeout, "-1s"},
		{"a tiny timeout", good, "k", "v", []PubOption{WithTimeout(99 * time.Millisecond)}, ErrTimeout, "99ms"},
		{"a password without a user", good, "k", "v", []PubOption{WithPubEtcdAccount("", "p")}, ErrAccount, "user"},
		{"a user without a password", good, "k", "v", []PubOption{WithPubEtcdAccount("u", "")}, ErrAccount, `"u"`},
		{"a user that is no text", good, "k", "v", []PubOption{WithPubEtcdAccount("\xff", "p")}, ErrAccount, `"\xff"`},
		{"an empty account", good, "k", "v", []PubOption{WithPubEtcdAccount("", "")}, ErrAccount, "user"},
		{"no certificate file", good, "k", "v", []PubOption{WithPubEtcdTLS("", cert.KeyFile, cert.CAFile, false)}, ErrTLS, "certificate file"},
		{"no key file", good, "k", "v", []PubOption{WithPubEtcdTLS(cert.CertFile, "", cert.CAFile, false)}, ErrTLS, "key file"},
		{"no CA file", good, "k", "v", []PubOption{WithPubEtcdTLS(cert.CertFile, cert.KeyFile, "", false)}, ErrTLS, "CA file"},
		{"no files at all", good, "k", "v", []PubOption{WithPubEtcdTLS("", "", "", true)}, ErrTLS, "CA file"},
		{"a missing certificate", good, "k", "v", []PubOption{WithPubEtcdTLS(missing, cert.KeyFile, cert.CAFile, false)}, ErrTLS, missing},
		{"a missing key", good, "k", "v", []PubOption{WithPubEtcdTLS(cert.CertFile, missing, cert.CAFile, false)}, ErrTLS, missing},
		{"a missing CA", good, "k", "v", []PubOption{WithPubEtcdTLS(cert.CertFile, cert.KeyFile, missing, false)}, ErrTLS, missing},
		{"a directory for a CA", good, "k", "v", []PubOption{WithPubEtcdTLS(cert.CertFile, cert.KeyFile, t.TempDir(), false)}, ErrTLS, "CA"},
		{"a certificate that is no PEM", good, "k", "v", []PubOption{WithPubEtcdTLS(noPEM, cert.KeyFile, cert.CAFile, false)}, ErrTLS, noPEM},
		{"a CA that is no PEM", good, "k", "v", []PubOption{WithPubEtcdTLS(cert.CertFile, cert.KeyFile, noPEM, false)}, ErrTLS, noPEM},
		{"another's key", good, "k", "v", []PubOption{WithPubEtcdTLS(cert.CertFile, other.KeyFile, cert.CAFile, false)}, ErrTLS, other.KeyFile},
		{"http with TLS files", []string{"http://a:1"}, "k", "v", []PubOption{files}, ErrTLS, "http://a:1"},
		{"http with a TLS config", []string{"http://a:1"}, "k", "v", []PubOption{config}, ErrTLS, "http://a:1"},
		{"one http with TLS files", []string{"a:1", "http://b:1"}, "k", "v", []PubOption{files}, ErrTLS, "http://b:1"},
		{"a plain unix socket with TLS", []string{"unix:///run/etcd"}, "k", "v", []PubOption{files}, ErrTLS, "unix"},
		{"HTTP in capitals with TLS", []string{"HTTP://a:1"}, "k", "v", []PubOption{files}, nil, "HTTP://a:1"},
		{"files and a config", good, "k", "v", []PubOption{files, config}, ErrOptions, "WithTLSConfig"},
		{"no TLS config", good, "k", "v", []PubOption{WithTLSConfig(nil)}, ErrOptions, "WithTLSConfig"},
		{"no client", good, "k", "v", []PubOption{WithClient(nil)}, ErrOptions, "WithClient"},
		{"no client config", good, "k", "v", []PubOption{WithClientConfig(nil)}, ErrOptions, "WithClientConfig"},
		{"no context", good, "k", "v", []PubOption{WithContext(nil)}, ErrOptions, "WithContext"}, //nolint:staticcheck // that is the point
		{"no logger", good, "k", "v", []PubOption{WithLogger(nil)}, ErrOptions, "WithLogger"},
		{"no observer", good, "k", "v", []PubOption{WithObserver(nil)}, ErrOptions, "WithObserver"},
		{"an exact key with an id", good, "k", "v", []PubOption{WithExactKey(), WithId(3)}, ErrOptions, "WithExactKey"},
		{"an id with an exact key", good, "k", "v", []PubOption{WithId(3), WithExactKey()}, ErrOptions, "WithExactKey"},
		{"a client with an account", nil, "k", "v", []PubOption{WithClient(client), WithPubEtcdAccount("u", "p")}, ErrOptions, "WithClient"},
		{"a client with TLS files", nil, "k", "v", []PubOption{WithClient(client), files}, ErrOptions, "WithClient"},
		{"a client with a TLS config", nil, "k", "v", []PubOption{WithClient(client), config}, ErrOptions, "WithClient"},
		{"a client with a client config", nil, "k", "v", []PubOption{WithClient(client), WithClientConfig(func(*clientv3.Config) {})}, ErrOptions, "WithClient"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			opts := append([]PubOption{WithTimeout(200 * time.Millisecond)}, c.opts...)
			p := NewPublisher(c.endpoints, c.key, c.value, opts...)
			inTime, began := judge(t), time.Now()
			err := p.KeepAlive()
			if c.want != nil {
				require.ErrorIs(t, err, c.want)
				require.True(t, inTime(time.Since(began), 200*time.Millisecond-slack), "nothing is dialled")
			}
			require.ErrorContains(t, err, "discov: ")
			require.ErrorContains(t, err, c.mentions)
			require.NotErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, StateIdle, p.Status().State)
			// Every other call works on it as on any that was not started.
			require.NoError(t, p.PauseContext(context.Background()))
			require.NoError(t, p.ResumeContext(context.Background()))
			require.NoError(t, p.Update(context.Background(), "other"))
			require.NoError(t, p.StopContext(context.Background()))
		})
	}
}

func TestAllThatIsWrongIsToldAtOnceBeforeAnythingIsDialled(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, listener.Close()) }()
	dialled := make(chan struct{}, 10)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
			dialled <- struct{}{}
		}
	}()

	p := NewPublisher([]string{listener.Addr().String(), "http://plain:1", "bad"}, "", "",
		WithTTL(time.Millisecond), WithTimeout(time.Millisecond), WithId(-1), WithPubEtcdAccount("", "p"),
		WithPubEtcdTLS("missing.pem", "", "", false), WithContext(nil)) //nolint:staticcheck // that is the point
	for range 2 {
		err = p.KeepAlive()
		for _, want := range []error{ErrEndpoints, ErrKey, ErrValue, ErrID, ErrTTL, ErrTimeout, ErrAccount, ErrTLS, ErrOptions} {
			require.ErrorIs(t, err, want)
		}
		require.Equal(t, 1, strings.Count(err.Error(), ErrID.Error()), "told once, also the second time")
	}
	p.Stop()
	require.Empty(t, dialled)
}

func TestGoodInputOfEveryKindIsAccepted(t *testing.T) {
	t.Parallel()
	for _, endpoint := range []string{
		"127.0.0.1:2379", "etcd1.example.com:2379", "[::1]:2379", "http://etcd1:2379", "https://etcd1:2379",
		"unix:///run/etcd.sock", "unixs:///run/etcd.sock", "unix:/run/etcd.sock", "http://[::1]:2379",
	} {
		p := NewPublisher([]string{endpoint}, "k", "v", WithTTL(time.Second), WithTimeout(100*time.Millisecond), WithId(1<<62))
		require.NoError(t, p.validate(), endpoint)
	}
	require.NoError(t, NewPublisher([]string{"[fe80::1%eth0]:2379", "[::1]:2379"}, "k", "v").validate(), "the client names its target after the first")
}

// etcdlessClient is a client of the caller's without any etcd.
func etcdlessClient(t *testing.T) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"127.0.0.1:1"}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// What the options do.

func TestTheDefaultTTLIsTenSeconds(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints())
	require.Equal(t, 10*time.Second, p.Status().TTL)
	require.Equal(t, 5*time.Second, p.opts.timeout)
	response, err := srv.Client(t).TimeToLive(context.Background(), p.Status().Lease)
	require.NoError(t, err)
	require.EqualValues(t, 10, response.GrantedTTL)
}

func TestWithExactKeyAppendsNothing(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := newTestPublisher(t, srv.Endpoints(), WithExactKey())
	require.NoError(t, p.KeepAlive())
	require.Equal(t, testKey, p.Status().Key)
	kv := requireValue(t, srv, testKey, testValue)
	require.Equal(t, int64(p.Status().Lease), kv.Lease)
	revokeByHand(t, srv, p.Status().Lease)
	awaitValue(t, srv, testKey, testValue)
	p.Stop()
	requireAbsent(t, srv, testKey)
}

func TestWithIdAppendsIt(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := newTestPublisher(t, srv.Endpoints(), WithId(1), WithId(1<<62))
	require.NoError(t, p.KeepAlive())
	require.Equal(t, "user.rpc/4611686018427387904", p.Status().Key)
	requireValue(t, srv, p.Status().Key, testValue)
}

func TestWithTimeoutBoundsACallWithoutADeadline(t *testing.T) {
	t.Parallel()
	p := newTestPublisher(t, []string{"127.0.0.1:1"}, WithTimeout(200*time.Millisecond))
	began := time.Now()
	require.Error(t, p.KeepAlive())
	require.Greater(t, time.Since(began), 100*time.Millisecond)
	requireIdle(t, p)
	requireWithin(t, 200*time.Millisecond, func() { require.Error(t, p.KeepAlive()) })
	requireIdle(t, p)
	// A deadline goes before the timeout, also a longer one.
	began = time.Now()
	require.Error(t, p.KeepAliveContext(deadline(t, 600*time.Millisecond)))
	require.Greater(t, time.Since(began), 400*time.Millisecond)
}

// WithClient.

func TestTheCallersClientIsUsedAndLeftOpen(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	client, err := clientv3.New(clientv3.Config{Endpoints: srv.Endpoints()})
	require.NoError(t, err)
	defer func() { _ = client.Close() }()
	first := published(t, nil, WithClient(client))
	second := newTestPublisher(t, []string{"not an endpoint"}, WithClient(client))
	require.NoError(t, second.KeepAlive())
	require.Equal(t, 1, srv.Connections())
	etcdtest.RequireSoon(t, eventually, func() bool { return srv.Watchers() == 2 })
	require.Equal(t, 1, srv.OpenStreams("Watch"), "Publishers with the same client share their streams")

	first.Stop()
	require.Equal(t, StatePublished, second.Status().State)
	second.Stop()
	require.NoError(t, client.Ctx().Err())
	_, err = client.Get(context.Background(), testKey)
	require.NoError(t, err)
	etcdtest.RequireSoon(t, eventually, func() bool { return srv.Watchers()+srv.OpenStreams("Watch")+srv.OpenStreams("LeaseKeepAlive") == 0 })
	require.Equal(t, 1, srv.Connections())
	srv.RequireLeases(t, 0)
}

// WithClientConfig.

func TestTheClientConfigHasTheLastWord(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	var seen clientv3.Config
	p := newTestPublisher(t, []string{"127.0.0.1:1"}, WithClientConfig(func(c *clientv3.Config) {
		seen = *c
		c.Endpoints = srv.Endpoints()
	}))
	require.NoError(t, p.KeepAlive())
	requireValue(t, srv, p.Status().Key, testValue)
	require.Equal(t, []string{"127.0.0.1:1"}, seen.Endpoints)
	require.Equal(t, 10*time.Second, seen.DialKeepAliveTime)
	require.Equal(t, 3*time.Second, seen.DialKeepAliveTimeout)
	require.False(t, seen.PermitWithoutStream)
	require.False(t, seen.RejectOldCluster)
	require.Zero(t, seen.AutoSyncInterval)
	require.NotNil(t, seen.Logger)
}

func TestTheClientConfigMaySetAUser(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t, etcdtest.WithAuth("u", "p"))
	p := published(t, srv.Endpoints(), WithClientConfig(func(c *clientv3.Config) { c.Username, c.Password = "u", "p" }))
	requireValue(t, srv, testFullKey, testValue)
	p.Stop()
	requireNothingLeft(t, srv)
}

func TestTheClientConfigMayLimitMessages(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints(), WithClientConfig(func(c *clientv3.Config) { c.MaxCallSendMsgSize = 200 }))
	require.ErrorContains(t, p.Update(deadline(t, eventually), strings.Repeat("v", 300)), "larger than max")
	requireValue(t, srv, testFullKey, testValue)
}

func TestAClientConfigThatPanicsIsAnError(t *testing.T) {
	t.Parallel()
	p := newTestPublisher(t, []string{"127.0.0.1:1"}, WithClientConfig(func(*clientv3.Config) { panic("oh dear") }))
	err := p.KeepAlive()
	require.ErrorIs(t, err, ErrOptions)
	require.ErrorContains(t, err, "oh dear")
	require.Equal(t, StateIdle, p.Status().State)
	require.ErrorIs(t, p.KeepAlive(), ErrOptions, "and nothing is held up by it")
}

func TestAClientConfigThatAsksBeforeThereIsAClientIsAnErrorWithAnAccount(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t, etcdtest.WithAuth("u", "p"))
	reject := WithClientConfig(func(c *clientv3.Config) { c.RejectOldCluster = true })
	p := newTestPublisher(t, srv.Endpoints(), reject, WithPubEtcdAccount("u", "p"))
	err := p.KeepAlive()
	require.ErrorIs(t, err, ErrOptions)
	require.ErrorContains(t, err, "RejectOldCluster")
}

func TestAClientConfigMaySyncTheEndpointsOfAnAccount(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t, etcdtest.WithAuth("u", "p"))
	sync := WithClientConfig(func(c *clientv3.Config) { c.AutoSyncInterval = time.Nanosecond })
	published(t, srv.Endpoints(), sync, WithPubEtcdAccount("u", "p"))
}

func TestAClientConfigThatMakesNoClientIsAnError(t *testing.T) {
	t.Parallel()
	p := newTestPublisher(t, []string{"127.0.0.1:1"}, WithClientConfig(func(c *clientv3.Config) { c.Endpoints = nil }))
	require.ErrorContains(t, p.KeepAlive(), "endpoint")
	require.Equal(t, StateIdle, p.Status().State)
}

func TestAClientConfigThatMakesTheDialSlowDoesNotOutlastTheBound(t *testing.T) {
	requireNoGoroutineLeft(t)
	const bound = 300 * time.Millisecond
	tunings := map[string]func(*clientv3.Config){
		"a user, with etcd down": func(c *clientv3.Config) { c.Username, c.Password = "u", "p" },
		"a tuning that is slow":  func(*clientv3.Config) { time.Sleep(time.Second) },
		"a dial that blocks": func(c *clientv3.Config) {
			c.Username, c.Password = "u", "p"
			c.DialTimeout = time.Second
		},
	}
	for name, tune := range tunings {
		t.Run(name, func(t *testing.T) {
			p := newTestPublisher(t, []string{"127.0.0.1:1"}, WithClientConfig(tune), WithTimeout(bound))
			requireWithin(t, bound, func() { require.Error(t, p.KeepAlive()) })
			requireWithin(t, bound, p.Stop)
			etcdtest.RequireSoon(t, eventually, func() bool { return p.Status().State == StateStopped })
			etcdtest.RequireSoon(t, eventually, func() bool {
				connections.mu.Lock()
				defer connections.mu.Unlock()
				return len(connections.conns) == 0
			}, "the tuning ends, and what it delayed is given back")
		})
	}
}

// TestATuningThatIsSlowTheSecondTimeDoesNotOutlastTheBound: a connection in doubt is dialled anew.
func TestATuningThatIsSlowTheSecondTimeDoesNotOutlastTheBound(t *testing.T) {
	t.Parallel()
	_, path := quickPath(t)
	path.Swallow()
	var calls atomic.Int32
	p := newTestPublisher(t, []string{path.Endpoint()}, WithTimeout(time.Second), WithClientConfig(func(*clientv3.Config) {
		if calls.Add(1) > 1 {
			time.Sleep(3 * time.Second)
		}
	}))
	requireWithin(t, time.Second, func() { require.Error(t, p.KeepAlive()) })
	requireWithin(t, time.Second, p.Stop)
	require.Greater(t, calls.Load(), int32(1))
}

func TestASlowDialDoesNotHoldUpBackgroundStart(t *testing.T) {
	t.Parallel()
	tuned := make(chan struct{})
	p := newTestPublisher(t, []string{"127.0.0.1:1"}, WithBackgroundStart(), WithTimeout(300*time.Millisecond), WithTTL(time.Second),
		WithClientConfig(func(*clientv3.Config) {
			defer close(tuned) // one dial, for all who wait for it
			time.Sleep(time.Second)
		}))
	requireWithin(t, 0, func() { require.NoError(t, p.KeepAlive()) })
	requireWithin(t, 300*time.Millisecond, p.Pause)
	requireWithin(t, 300*time.Millisecond, p.Stop)
	awaitState(t, p, StateStopped)
	<-tuned
}

// WithContext.

func TestAContextThatIsDoneStops(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	ctx, cancel := context.WithCancel(context.Background())
	p := published(t, srv.Endpoints(), WithContext(ctx))
	cancel()
	awaitState(t, p, StateStopped)
	requireAbsent(t, srv, testFullKey)
	require.ErrorIs(t, p.KeepAlive(), ErrStopped)
	require.ErrorIs(t, p.ResumeContext(context.Background()), ErrStopped)
	requireNothingLeft(t, srv)
}

func TestAContextThatIsDoneBeforehandRegistersNothing(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	why := errors.New("the process is going down")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(why)
	p := newTestPublisher(t, srv.Endpoints(), WithContext(ctx))
	err := p.KeepAlive()
	require.ErrorIs(t, err, ErrStopped)
	require.ErrorIs(t, err, why)
	require.Empty(t, srv.Requests())
}

func TestAContextThatIsDoneWhilePausedStops(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	ctx, cancel := context.WithCancel(context.Background())
	p := published(t, srv.Endpoints(), WithContext(ctx))
	p.Pause()
	cancel()
	awaitState(t, p, StateStopped)
	requireNothingLeft(t, srv)
}

func TestAContextThatIsDoneBeforeKeepAliveStopsAWaitingPublisherToo(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	p := newTestPublisher(t, []string{"127.0.0.1:1"}, WithContext(ctx))
	cancel()
	awaitState(t, p, StateStopped)
	// "done means Stop": as by Stop, later calls say so.
	require.ErrorIs(t, p.PauseContext(context.Background()), ErrStopped)
	require.ErrorIs(t, p.Update(context.Background(), "other"), ErrStopped)
}

// WithBackgroundStart.

func TestABackgroundStartStillRefusesBadInput(t *testing.T) {
	t.Parallel()
	p := newTestPublisher(t, nil, WithBackgroundStart())
	require.ErrorIs(t, p.KeepAlive(), ErrEndpoints)
}

func TestABackgroundStartRegistersOnAHealthyEtcd(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := newTestPublisher(t, srv.Endpoints(), WithId(testID), WithBackgroundStart())
	require.NoError(t, p.KeepAlive())
	require.NoError(t, p.ResumeContext(context.Background()), "waits until it is there")
	requireValue(t, srv, testFullKey, testValue)
	require.Equal(t, 1, srv.Requests()["Put"]+srv.Requests()["Txn"])
	require.Equal(t, 1, srv.Requests()["LeaseGrant"])
}

// WithObserver.

func TestAnObserverIsToldEveryChangeInOrder(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p, events := newRecordedPublisher(t, srv.Endpoints(), WithId(testID))
	began := time.Now()
	require.NoError(t, p.KeepAlive())
	lease := p.Status().Lease
	p.Pause()
	p.Resume()
	second := p.Status().Lease
	p.Stop()
	etcdtest.RequireSoon(t, eventually, func() bool { return len(events.changes()) == 8 })
	require.Equal(t, []State{
		StateRegistering, StatePublished, StateWithdrawing, StatePaused,
		StateRegistering, StatePublished, StateWithdrawing, StateStopped,
	}, events.states())
	last := began
	for _, e := range events.changes() {
		require.False(t, e.Time.Before(last))
		last = e.Time
		require.NoError(t, e.Err)
		switch e.To {
		case StatePublished, StateWithdrawing:
			require.Equal(t, testFullKey, e.Key)
			require.Contains(t, []clientv3.LeaseID{lease, second}, e.Lease)
		}
	}
}

func TestASlowObserverHoldsNothingUp(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	release := make(chan struct{})
	p := published(t, srv.Endpoints(), WithObserver(func(Event) { <-release }))
	p.Pause()
	requireAbsent(t, srv, testFullKey)
	p.Resume()
	requireValue(t, srv, testFullKey, testValue)
	p.Stop()
	requireAbsent(t, srv, testFullKey)
	require.Equal(t, StateStopped, p.Status().State)
	close(release)
}

func TestAnObserverIsCalledOneAtATime(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	var inside, most, calls atomic.Int32
	p := published(t, srv.Endpoints(), WithObserver(func(Event) {
		most.Store(max(most.Load(), inside.Add(1)))
		time.Sleep(time.Millisecond)
		calls.Add(1)
		inside.Add(-1)
	}))
	for range 10 {
		p.Pause()
		p.Resume()
	}
	p.Stop()
	etcdtest.RequireSoon(t, eventually, func() bool { return calls.Load() == 2+10*4+2 }, "every change is told, also after Stop")
	require.EqualValues(t, 1, most.Load())
}

func TestAVerySlowObserverMissesTheOldestAndIsToldInTheLog(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	log := &LogLines{}
	release := make(chan struct{})
	events := &EventLog{}
	p := NewPublisher(srv.Endpoints(), testKey, testValue, log.Option(), WithObserver(func(e Event) {
		<-release
		events.Observe(e)
	}))
	require.NoError(t, p.KeepAlive())
	for range 80 {
		p.Pause()
		p.Resume()
	}
	p.Stop()
	close(release)
	etcdtest.RequireSoon(t, eventually, func() bool {
		states := events.states()
		return len(states) > 0 && states[len(states)-1] == StateStopped
	})
	require.LessOrEqual(t, len(events.All()), 258)
	require.Contains(t, log.String(), "missed")
}

func TestAnObserverThatPanicsIsToldInTheLogAndCalledAgain(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	log := &LogLines{}
	var calls atomic.Int32
	p := published(t, srv.Endpoints(), log.Option(), WithObserver(func(Event) {
		calls.Add(1)
		panic("oh dear")
	}))
	requireValue(t, srv, testFullKey, testValue)
	p.Stop()
	etcdtest.RequireSoon(t, eventually, func() bool { return calls.Load() == 4 && strings.Count(log.String(), "oh dear") == 4 })
}

func TestAnObserverMayCallThePublisher(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	calls := map[string]func(*Publisher){
		"Status": func(p *Publisher) { _ = p.Status() },
		"Stop":   (*Publisher).Stop,
		"Pause":  (*Publisher).Pause,
		"Resume": (*Publisher).Resume,
		"Update": func(p *Publisher) { _ = p.Update(context.Background(), "from the observer") },
		"KeepAlive": func(p *Publisher) {
			assert.ErrorIs(t, p.KeepAlive(), ErrStarted)
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var p *Publisher
			called := make(chan struct{})
			var once sync.Once
			p = NewPublisher(srv.Endpoints(), testKey, testValue, Quiet,
				WithObserver(func(e Event) {
					if e.To != StatePublished {
						return
					}
					once.Do(func() {
						began := time.Now()
						call(p)
						assert.Less(t, time.Since(began), 2*time.Second, "it is not held up by being told")
						close(called)
					})
				}))
			if err := p.KeepAlive(); !errors.Is(err, ErrStopped) { // the observer may be the first to hear
				require.NoError(t, err)
			}
			select {
			case <-called:
			case <-time.After(eventually):
				require.Fail(t, "the call never returns")
			}
			p.Stop()
			require.Equal(t, StateStopped, p.Status().State)
		})
	}
}

// WithLogger.

func TestTheLogTellsOfALossAndOfTheReturn(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	log := &LogLines{}
	p := published(t, srv.Endpoints(), WithTTL(time.Second), log.Option())
	srv.Stop()
	awaitState(t, p, StateRegistering)
	srv.Start()
	awaitState(t, p, StatePublished)
	p.Stop()
	etcdtest.RequireSoon(t, eventually, func() bool { return strings.Contains(log.String(), "stopped") })

	lines := log.All()
	require.Len(t, lines, 4, "one line each, however often it was tried: %s", log)
	for i, want := range []string{"registered", "lost or in doubt", "registered again", "stopped"} {
		require.Contains(t, lines[i], want)
		require.Contains(t, lines[i], "key="+testFullKey)
	}
	require.Contains(t, lines[1], "level=WARN")
	require.Contains(t, lines[1], "err=")
	require.Contains(t, lines[2], "after=")
	require.NotContains(t, log.String(), testValue, "what is in the value is nobody's business")
}

// panickingHandler is a log handler of a careless user's.
type panickingHandler struct{ slog.Handler }

func (panickingHandler) Enabled(context.Context, slog.Level) bool { return true }

func (panickingHandler) Handle(context.Context, slog.Record) error { panic("oh dear") }

func TestALoggerThatPanicsHarmsNothing(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p, events := newRecordedPublisher(t, srv.Endpoints(), WithId(testID),
		WithLogger(slog.New(panickingHandler{slog.DiscardHandler})))
	require.NoError(t, p.KeepAlive())
	requireValue(t, srv, testFullKey, testValue)
	p.Stop()
	requireAbsent(t, srv, testFullKey)
	etcdtest.RequireSoon(t, eventually, func() bool { return len(events.states()) == 4 }, "the observer is told all the same")
}

// FuzzBadInputIsNamedAndGoodInputIsUsable builds a Publisher of anything: what is wrong is told with its kind, and what is
// not can be dialled and sent.
func FuzzBadInputIsNamedAndGoodInputIsUsable(f *testing.F) {
	for _, endpoint := range []string{
		"127.0.0.1:2379", "etcd:2379", "[::1]:2379", "http://a:1", "https://a:1", "unix:///s", "unix:s", "unixs://s",
		"", "a", "a:0", "a:65536", ":1", "http://", "http://a:1/x", "http://u@a:1", "dns:///a:1", "a b:1", "a:1,b:2", "%zz:1", "http://%zz:1", "unixs:/\fs",
	} {
		f.Add(endpoint, "user.rpc", "10.0.0.1:8080", int64(7), int64(10*time.Second), int64(5*time.Second), "u", "p")
	}
	f.Add("a:1", "", "", int64(-1), int64(-1), int64(-1), "", "")
	f.Add("a:1", "\xff", "\x00", int64(1<<62), int64(1<<62), int64(1<<62), "\xff", "p")
	kinds := []error{ErrEndpoints, ErrKey, ErrValue, ErrID, ErrTTL, ErrTimeout, ErrAccount, ErrTLS, ErrOptions}
	f.Fuzz(func(t *testing.T, endpoint, key, value string, id, ttl, timeout int64, user, pass string) {
		p := NewPublisher([]string{endpoint}, key, value, WithId(id), WithTTL(time.Duration(ttl)),
			WithTimeout(time.Duration(timeout)), WithPubEtcdAccount(user, pass))
		if err := p.validate(); err != nil {
			require.Equal(t, err.Error(), p.KeepAlive().Error())
			for _, one := range joined(err) {
				require.True(t, slices.ContainsFunc(kinds, func(kind error) bool { return errors.Is(one, kind) }), "%v", one)
			}
			return
		}
		c, err := conn.Open(p.opts.target.To(p.endpoints))
		require.NoError(t, err)
		c.Close()
		_, err = proto.Marshal(&pb.PutRequest{Key: []byte(key), Value: []byte(value), Lease: 1})
		require.NoError(t, err)
		_, err = proto.Marshal(&pb.AuthenticateRequest{Name: user, Password: pass})
		require.NoError(t, err)
	})
}
