package discov

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// filesOf is the option for a certificate of etcdtest's.
func filesOf(cert etcdtest.Cert) PubOption {
	return WithPubEtcdTLS(cert.CertFile, cert.KeyFile, cert.CAFile, false)
}

// configOf is the same certificate for WithTLSConfig.
func configOf(t *testing.T, cert etcdtest.Cert) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(cert.CertFile, cert.KeyFile)
	require.NoError(t, err)
	pem, err := os.ReadFile(cert.CAFile)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(pem))
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, RootCAs: pool}
}

// bare is the endpoints without their scheme.
func bare(srv *etcdtest.Server) []string {
	return []string{srv.Endpoints()[0][len("https://"):]}
}

func TestEveryWayToProveIdentityRegisters(t *testing.T) {
	t.Parallel()
	ca := etcdtest.NewCA(t)
	secure := quickEtcd(t, etcdtest.WithServerTLS(ca.Issue(t)))
	both := quickEtcd(t, etcdtest.WithServerTLS(ca.Issue(t)), etcdtest.WithAuth("u", "p"))
	account := quickEtcd(t, etcdtest.WithAuth("u", "p"))
	open := quickEtcd(t)
	cert := ca.Issue(t)
	named := ca.Issue(t, etcdtest.Named("u"))

	cases := []struct {
		name      string
		srv       *etcdtest.Server
		endpoints []string
		opts      []PubOption
	}{
		{"TLS files, https", secure, secure.Endpoints(), []PubOption{filesOf(cert)}},
		{"TLS files, no scheme", secure, bare(secure), []PubOption{filesOf(cert)}},
		{"a TLS config, https", secure, secure.Endpoints(), []PubOption{WithTLSConfig(configOf(t, cert))}},
		{"a TLS config, no scheme", secure, bare(secure), []PubOption{WithTLSConfig(configOf(t, cert))}},
		{"a user", account, account.Endpoints(), []PubOption{WithPubEtcdAccount("u", "p")}},
		{"a user over http", account, []string{"http://" + account.Endpoints()[0]}, []PubOption{WithPubEtcdAccount("u", "p")}},
		{"both", both, both.Endpoints(), []PubOption{filesOf(cert), WithPubEtcdAccount("u", "p")}},
		{"the name in the certificate", both, both.Endpoints(), []PubOption{filesOf(named)}},
		{"a user where etcd asks for none", open, open.Endpoints(), []PubOption{WithPubEtcdAccount("u", "p")}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p, _ := newRecordedPublisher(t, c.endpoints, c.opts...)
			require.NoError(t, p.KeepAlive())
			requireValue(t, c.srv, p.Status().Key, testValue)
			etcdtest.RequireSoon(t, eventually, func() bool { return c.srv.Watchers() == 1 }, "the watch is let in as well")
			revokeByHand(t, c.srv, p.Status().Lease)
			etcdtest.RequireSoon(t, eventually, func() bool {
				return p.Stats().Registrations == 2 && p.Status().State == StatePublished
			}, "it is mended")
			require.NoError(t, p.StopContext(context.Background()))
			requireAbsent(t, c.srv, p.Status().Key)
			c.srv.RequireLeases(t, 0)
			etcdtest.RequireSoon(t, eventually, func() bool { return c.srv.Watchers() == 0 })
		})
	}
}

func TestAFirstRegistrationWithAnAccountCostsOneAuthenticateMore(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t, etcdtest.WithAuth("u", "p"))
	p := published(t, srv.Endpoints(), WithPubEtcdAccount("u", "p"), WithTTL(5*time.Second))
	until := p.Status().Until
	etcdtest.RequireSoon(t, eventually, func() bool { return p.Status().Until.After(until) && srv.Watchers() == 1 })
	got := srv.Requests()
	require.Equal(t, 1, got["Authenticate"])
	require.Equal(t, 1, got["LeaseGrant"])
	require.Equal(t, 1, got["Put"])
	require.LessOrEqual(t, got["Range"], 2, "asked where an answer is late: whether it is the token's fault")
	for method := range got {
		require.Contains(t, []string{
			"Authenticate", "LeaseGrant", "Put", "Watch", "Watch.msg", "Watch.create", "LeaseKeepAlive", "LeaseKeepAlive.msg", "Range",
		}, method)
	}
}

func TestARefusalNamesItsCauseWithinTheBound(t *testing.T) {
	t.Parallel()
	ca, foreign := etcdtest.NewCA(t), etcdtest.NewCA(t)
	secure := quickEtcd(t, etcdtest.WithServerTLS(ca.Issue(t)))
	expired := quickEtcd(t, etcdtest.WithServerTLS(ca.Issue(t, etcdtest.Expired())))
	misnamed := quickEtcd(t, etcdtest.WithServerTLS(ca.Issue(t, etcdtest.ForHosts("etcd.example.com"))))
	account := quickEtcd(t, etcdtest.WithAuth("u", "p"))
	account.AddUser(t, "stranger", "p")
	account.AddUser(t, "neighbour", "p")
	account.Grant(t, "neighbour", testKey+".other/", clientv3.GetPrefixRangeEnd(testKey+".other/"), clientv3.PermissionType(clientv3.PermReadWrite))
	account.AddUser(t, "reader", "p")
	account.Grant(t, "reader", testKey, clientv3.GetPrefixRangeEnd(testKey), clientv3.PermissionType(clientv3.PermRead))
	both := quickEtcd(t, etcdtest.WithServerTLS(ca.Issue(t)), etcdtest.WithAuth("u", "p"))

	open := quickEtcd(t)
	cert := ca.Issue(t)
	unknownCA := cert
	unknownCA.CAFile = foreign.File
	noCert := configOf(t, cert)
	noCert.Certificates = nil

	cases := []struct {
		name      string
		srv       *etcdtest.Server
		endpoints []string
		opts      []PubOption
		is        error
		mentions  string
	}{
		{"a wrong password", account, account.Endpoints(), []PubOption{WithPubEtcdAccount("u", "wrong")}, rpctypes.ErrAuthFailed, "authentication failed"},
		{"an unknown user", account, account.Endpoints(), []PubOption{WithPubEtcdAccount("nobody", "p")}, rpctypes.ErrAuthFailed, "authentication failed"},
		{"no user", account, account.Endpoints(), nil, rpctypes.ErrUserEmpty, "user name is empty"},
		{"no permission at all", account, account.Endpoints(), []PubOption{WithPubEtcdAccount("stranger", "p")}, rpctypes.ErrPermissionDenied, "permission denied"},
		{"no permission on the key", account, account.Endpoints(), []PubOption{WithPubEtcdAccount("neighbour", "p")}, rpctypes.ErrPermissionDenied, "permission denied"},
		{"permission to read only", account, account.Endpoints(), []PubOption{WithPubEtcdAccount("reader", "p")}, rpctypes.ErrPermissionDenied, "permission denied"},
		{"a wrong password over TLS", both, both.Endpoints(), []PubOption{filesOf(cert), WithPubEtcdAccount("u", "wrong")}, rpctypes.ErrAuthFailed, "authentication failed"},
		{"a name in the certificate that etcd does not know", both, both.Endpoints(), []PubOption{filesOf(cert)}, rpctypes.ErrPermissionDenied, "permission denied"},
		{"an unknown CA", secure, secure.Endpoints(), []PubOption{filesOf(unknownCA)}, nil, "unknown authority"},
		{"an unknown CA in a config", secure, secure.Endpoints(), []PubOption{WithTLSConfig(configOf(t, unknownCA))}, nil, "unknown authority"},
		{"a client without a certificate", secure, secure.Endpoints(), []PubOption{WithTLSConfig(noCert)}, nil, "certificate"},
		{"a client whose certificate has expired", secure, secure.Endpoints(), []PubOption{filesOf(ca.Issue(t, etcdtest.Expired()))}, nil, "certificate"},
		{"a server whose certificate has expired", expired, expired.Endpoints(), []PubOption{filesOf(cert)}, nil, "expired"},
		{"a server of another name", misnamed, misnamed.Endpoints(), []PubOption{filesOf(cert)}, nil, "127.0.0.1"},
		{"plaintext to a server with TLS", secure, bare(secure), nil, nil, "error reading server preface"},
		{"an unknown CA with an account", both, both.Endpoints(), []PubOption{filesOf(unknownCA), WithPubEtcdAccount("u", "p")}, nil, "unknown authority"},
		{"TLS to a server without", open, open.Endpoints(), []PubOption{filesOf(cert)}, nil, "handshake failed"},
		{"TLS to a server without, with an account", account, account.Endpoints(), []PubOption{filesOf(cert), WithPubEtcdAccount("u", "p")}, nil, "handshake failed"},
	}
	const bound = 2 * time.Second
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newTestPublisher(t, c.endpoints, append(c.opts, WithId(testID), WithTimeout(bound))...)
			inTime := judge(t)
			began := time.Now()
			err := p.KeepAlive()
			took := time.Since(began)
			t.Logf("%v: %v", took.Round(time.Millisecond), err)
			require.Error(t, err)
			require.True(t, inTime(took, bound-slack), "the clean-up is within the bound")
			require.ErrorContains(t, err, c.mentions)
			require.ErrorContains(t, err, "discov: ")
			require.ErrorContains(t, err, testFullKey)
			requireIdle(t, p)
			s := p.Status()
			require.ErrorContains(t, s.Err, c.mentions)
			require.Zero(t, s.Lease)
			require.Zero(t, s.TTL)
			require.Zero(t, s.Until)
			if c.is != nil {
				require.ErrorIs(t, err, c.is)
				require.True(t, inTime(took, bound*3/4-slack), "what trying again cannot mend is told at once")
			}
			requireAbsent(t, c.srv, testFullKey)
			// The cases share their servers.
			etcdtest.RequireSoon(t, eventually, func() bool { return c.srv.Leases(t) == 0 }, "no lease is left")
		})
	}
}

func TestInsecureSkipVerifyTakesAnyServer(t *testing.T) {
	t.Parallel()
	ca := etcdtest.NewCA(t)
	srv := quickEtcd(t, etcdtest.WithServerTLS(ca.Issue(t, etcdtest.ForHosts("etcd.example.com"), etcdtest.Expired())))
	cert := ca.Issue(t)
	cert.CAFile = etcdtest.NewCA(t).File
	p := newTestPublisher(t, srv.Endpoints(), WithPubEtcdTLS(cert.CertFile, cert.KeyFile, cert.CAFile, true))
	require.NoError(t, p.KeepAlive())
	requireValue(t, srv, p.Status().Key, testValue)
}

func TestAPermissionThatIsGivenLaterLetsTheNextKeepAliveIn(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t, etcdtest.WithAuth("u", "p"))
	srv.AddUser(t, "late", "p")
	p := newTestPublisher(t, srv.Endpoints(), WithId(testID), WithPubEtcdAccount("late", "p"))
	require.ErrorIs(t, p.KeepAlive(), rpctypes.ErrPermissionDenied)
	srv.Grant(t, "late", testFullKey, "", clientv3.PermissionType(clientv3.PermReadWrite))
	require.NoError(t, p.KeepAlive())
	requireValue(t, srv, testFullKey, testValue)
	etcdtest.RequireSoon(t, eventually, func() bool { return srv.Watchers() == 1 }, "that one key is enough")
}

// Rotation.

// secured is a server with TLS, reached over a path, and a Publisher with certificate files on it.
type secured struct {
	ca             *etcdtest.CA
	server, client etcdtest.Cert
	srv            *etcdtest.Server
	path           *etcdtest.Path
	p              *Publisher
}

func newSecured(t *testing.T) secured {
	t.Helper()
	ca := etcdtest.NewCA(t)
	s := secured{ca: ca, server: ca.Issue(t), client: ca.Issue(t)}
	s.srv = quickEtcd(t, etcdtest.WithServerTLS(s.server))
	s.path = etcdtest.NewPath(t, s.srv.Endpoints()[0])
	s.p = published(t, []string{s.path.Endpoint()}, filesOf(s.client))
	return s
}

// reconnect breaks the connection, so that there is another handshake, and waits until etcd has answered again.
func (s secured) reconnect(t *testing.T) {
	t.Helper()
	s.path.Reset()
	etcdtest.RequireSoon(t, eventually, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		defer cancel()
		return s.p.Update(ctx, time.Now().String()) == nil
	}, "it has reconnected")
	requireValue(t, s.srv, testFullKey, s.p.Status().Value)
}

func TestARenewedCertificateAndKeyAreUsed(t *testing.T) {
	t.Parallel()
	s := newSecured(t)
	s.ca.Renew(t, s.client, etcdtest.Expired())
	s.path.Reset()
	err := s.p.Update(deadline(t, time.Second), "with an expired certificate")
	require.Error(t, err, "the one on disk is used")

	s.ca.Renew(t, s.client)
	s.reconnect(t)
}

func TestFilesThatAreHalfWrittenAreReadAgain(t *testing.T) {
	t.Parallel()
	s := newSecured(t)
	require.NoError(t, os.Rename(s.client.KeyFile, s.client.KeyFile+".away"))
	s.path.Reset()
	err := s.p.Update(context.Background(), "without a key")
	require.ErrorContains(t, err, filepath.Base(s.client.KeyFile))
	require.NoError(t, os.Rename(s.client.KeyFile+".away", s.client.KeyFile))
	s.reconnect(t)
}

func TestAConnectionOutlivesTheFilesItWasMadeWith(t *testing.T) {
	t.Parallel()
	s := newSecured(t)
	require.NoError(t, os.Remove(s.client.KeyFile))
	require.NoError(t, s.p.Update(context.Background(), "on the old connection"))
	require.NoError(t, s.p.PauseContext(context.Background()))
	require.NoError(t, s.p.ResumeContext(context.Background()))
}

func TestATokenThatHasExpiredIsReplaced(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t, etcdtest.WithAuth("u", "p"), etcdtest.WithTokenTTL(time.Second))
	p := published(t, srv.Endpoints(), WithPubEtcdAccount("u", "p"), WithTTL(time.Hour)) // a renewal makes a token last
	// To ask whether it has expired would use it. It lives for a second after the watch has used it, etcd looks for old ones
	// once a second, and on a late machine later.
	time.Sleep(3500 * time.Millisecond)
	require.NoError(t, p.Update(context.Background(), "other"))
	requireValue(t, srv, testFullKey, "other")
	require.Equal(t, 2, srv.Requests()["Authenticate"])
	p.Stop()
	requireNothingLeft(t, srv)
}
