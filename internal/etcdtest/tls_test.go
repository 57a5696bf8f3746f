package etcdtest_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// tlsConfig is what a client makes of the files as they are now.
func tlsConfig(t testing.TB, c etcdtest.Cert) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	require.NoError(t, err)
	pem, err := os.ReadFile(c.CAFile)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(pem))
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool}
}

// shake returns why the server and a client with cfg refuse each other.
func shake(t testing.TB, s *etcdtest.Server, cfg *tls.Config) error {
	t.Helper()
	addr := s.Endpoints()[0][len("https://"):]
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", addr, cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	// TLS 1.3 refuses a client's certificate after the handshake.
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err = c.Read(make([]byte, 1))
	return err
}

func TestTLSServerAcceptsOnlyClientsOfItsCA(t *testing.T) {
	t.Parallel()
	ca, other := etcdtest.NewCA(t), etcdtest.NewCA(t)
	s := etcdtest.Start(t, etcdtest.QuickTicks(), etcdtest.WithServerTLS(ca.Issue(t)))
	put(t, s.Client(t), "k", "v")

	good := tlsConfig(t, ca.Issue(t))
	require.Equal(t, "v", get(t, client(t, clientv3.Config{Endpoints: s.Endpoints(), TLS: good}), "k"))

	bare := good.Clone()
	bare.Certificates = nil
	require.ErrorContains(t, shake(t, s, bare), "certificate required")

	stranger := good.Clone()
	stranger.Certificates = tlsConfig(t, other.Issue(t)).Certificates
	require.ErrorContains(t, shake(t, s, stranger), "unknown certificate authority")

	late := good.Clone()
	late.Certificates = tlsConfig(t, ca.Issue(t, etcdtest.Expired())).Certificates
	require.ErrorContains(t, shake(t, s, late), "expired")

	require.ErrorContains(t, shake(t, s, tlsConfig(t, other.Issue(t))), "unknown authority")
}

func TestIssueMakesCertificatesThatClientsRefuse(t *testing.T) {
	t.Parallel()
	ca := etcdtest.NewCA(t)
	for want, opt := range map[string]etcdtest.CertOption{
		"expired":          etcdtest.Expired(),
		"10.1.2.3, not 12": etcdtest.ForHosts("elsewhere.test", "10.1.2.3"),
	} {
		s := etcdtest.Start(t, etcdtest.QuickTicks(), etcdtest.WithServerTLS(ca.Issue(t, opt)))
		require.ErrorContains(t, shake(t, s, tlsConfig(t, ca.Issue(t))), want)
		put(t, s.Client(t), "k", "v") // our own client goes in
	}
}

func TestRenewAndReplaceKeepTheFileNames(t *testing.T) {
	t.Parallel()
	ca := etcdtest.NewCA(t)
	server, mine := ca.Issue(t), ca.Issue(t)
	s := etcdtest.Start(t, etcdtest.QuickTicks(), etcdtest.WithServerTLS(server))
	before := tlsConfig(t, mine)

	// The server reads its certificate for every handshake.
	ca.Renew(t, server, etcdtest.Expired())
	require.ErrorContains(t, shake(t, s, before), "expired")
	ca.Renew(t, server)
	put(t, client(t, clientv3.Config{Endpoints: s.Endpoints(), TLS: before}), "k", "v")

	// Who has not read the new CA refuses what it issues.
	ca.Replace(t)
	ca.Renew(t, server)
	ca.Renew(t, mine)
	require.ErrorContains(t, shake(t, s, before), "authority")
	s.Restart()
	require.ErrorContains(t, shake(t, s, before), "authority")
	put(t, client(t, clientv3.Config{Endpoints: s.Endpoints(), TLS: tlsConfig(t, mine)}), "k", "v")
	put(t, s.Client(t), "k", "v")
}
