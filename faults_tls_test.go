package discov_test

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Certificates: rotated, expired, or of a CA that nobody trusts.

// onTLS plays on an etcd whose certificate, and that of its Publishers, the test may change on disk.
func onTLS(t *testing.T) (s *scene, ca *etcdtest.CA, server, client etcdtest.Cert) {
	t.Helper()
	ca = etcdtest.NewCA(t)
	server, client = ca.Issue(t), ca.Issue(t)
	s = onServer(t, etcdtest.WithServerTLS(server))
	s.opts = []discov.PubOption{filesOf(client)}
	return s, ca, server, client
}

func TestCertificatesRotatedOnDiskAreUsedFromTheNextConnectionOn(t *testing.T) {
	t.Parallel()
	for name, together := range map[string]bool{"all at once": true, "the client's after the server's": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, ca, server, client := onTLS(t)
			pubs := s.publishSeveral(3)
			s.server.Stop()
			ca.Replace(t)
			ca.Renew(t, server)
			if together {
				ca.Renew(t, client)
			}
			s.server.Start()
			if !together {
				time.Sleep(2 * time.Second)
				ca.Renew(t, client)
			}
			good := s.begin("the files are right")
			etcdtest.RequireSoon(t, 10*time.Second, func() bool { return s.server.Watchers() == 3 }, "they don't watch")
			s.figure("watching", time.Since(good))
			assert.LessOrEqual(t, time.Since(good), atOnce)
			time.Sleep(2 * time.Second)
			s.requireNeverAbsent(pubs...)
			s.requireTrue(time.Now(), 0, pubs...)
		})
	}
}

func TestAnExpiredCertificateReplacedOnDiskBringsTheKeyBackAtOnceAndIsNamed(t *testing.T) {
	t.Parallel()
	s, ca, server, _ := onTLS(t)
	pub := s.publish("a:1", discov.WithId(1), discov.WithTTL(2*time.Second))
	ca.Renew(t, server, etcdtest.Expired())
	s.server.Restart()
	time.Sleep(6 * time.Second)
	require.False(t, s.Present(t, pub.key()))
	require.ErrorContains(t, pub.Status().Err, "expired")
	ca.Renew(t, server) // etcd reads it at each handshake
	s.requireBack("replaced")
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
	for name, opts := range map[string][]discov.PubOption{
		"TLS 1.2":                  {inTLS(tls.VersionTLS12)},
		"TLS 1.3":                  {inTLS(tls.VersionTLS13)},
		"TLS 1.2, with an account": {inTLS(tls.VersionTLS12), withAccount},
		"TLS 1.3, with an account": {inTLS(tls.VersionTLS13), withAccount},
		"files":                    {filesOf(cert)},
		"files, with an account":   {filesOf(cert), withAccount},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, etcd)
			for range 3 { // once in three tries, a write met the server's alert as a broken pipe
				pub := s.newInstance("a:1", append(opts, discov.WithTimeout(2*time.Second))...)
				err := s.bounded(2*time.Second, pub.start)
				require.Error(t, err)
				require.True(t, strings.Contains(err.Error(), "unknown certificate authority") || strings.Contains(err.Error(), "unknown authority"),
					"the cause is not named: %v", err)
				require.ErrorContains(t, pub.Status().Err, "unknown")
			}
		})
	}
}
