package auth_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/auth"
	"github.com/discov-go/discov/internal/etcd"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
)

// filesOf returns the files of a certificate.
func filesOf(cert etcdtest.Cert) auth.Files {
	return auth.Files{Cert: cert.CertFile, Key: cert.KeyFile, CA: cert.CAFile}
}

func TestFilesThatAreMissingAreNamed(t *testing.T) {
	t.Parallel()
	good := filesOf(etcdtest.NewCA(t).Issue(t))
	none := filepath.Join(t.TempDir(), "none.pem")
	noPEM := filepath.Join(t.TempDir(), "nonsense.pem")
	require.NoError(t, os.WriteFile(noPEM, []byte("nonsense"), 0o600))
	for _, c := range []struct {
		files auth.Files
		says  []string
	}{
		{auth.Files{}, []string{"no certificate file and no key file", "no CA file"}},
		{auth.Files{Key: good.Key, CA: good.CA}, []string{"no certificate file for the key file " + good.Key}},
		{auth.Files{Cert: good.Cert, CA: good.CA}, []string{"no key file for the certificate file " + good.Cert}},
		{auth.Files{Cert: good.Cert, Key: good.Key}, []string{"no CA file"}},
		{auth.Files{Cert: none, Key: good.Key, CA: good.CA}, []string{"certificate file " + none, "no such file"}},
		{auth.Files{Cert: good.Cert, Key: none, CA: good.CA}, []string{"key file " + none, "no such file"}},
		{auth.Files{Cert: good.Cert, Key: good.Key, CA: none}, []string{"CA file: open " + none, "no such file"}},
		{auth.Files{Cert: good.Cert, Key: good.Key, CA: noPEM}, []string{"CA file " + noPEM + ": no certificate in it"}},
		{auth.Files{Cert: noPEM, Key: good.Key, CA: noPEM}, []string{"certificate file " + noPEM, "CA file " + noPEM}},
	} {
		config, err := c.files.Load()
		require.Nil(t, config)
		for _, says := range c.says {
			require.ErrorContains(t, err, says)
		}
	}
}

func TestFilesAreCheckedUnlessTheUserSaysOtherwise(t *testing.T) {
	t.Parallel()
	files := filesOf(etcdtest.NewCA(t).Issue(t))
	config, err := files.Load()
	require.NoError(t, err)
	require.Len(t, config.Certificates, 1)
	require.False(t, config.InsecureSkipVerify)
	require.EqualValues(t, tls.VersionTLS12, config.MinVersion)
	files.InsecureSkipVerify = true
	config, err = files.Load()
	require.NoError(t, err)
	require.True(t, config.InsecureSkipVerify)
}

// anotherCA returns a CA of another name, by which a server tells whose certificates it wants.
func anotherCA(t *testing.T) *etcdtest.CA {
	t.Helper()
	ca := etcdtest.NewCA(t)
	ca.Replace(t)
	return ca
}

// secureServer is an etcd that wants certificates. The last one that it was shown can be read.
type secureServer struct {
	address string
	shown   atomic.Pointer[x509.Certificate]
	last    atomic.Pointer[net.Conn] // the last one
}

// hangUp ends the last connection.
func (s *secureServer) hangUp() { _ = (*s.last.Load()).Close() }

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.of.last.Store(&conn)
	}
	return conn, err
}

type listener struct {
	net.Listener
	of *secureServer
}

// briskly connects again soon.
var briskly = grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1, MaxDelay: 10 * time.Millisecond}, MinConnectTimeout: 5 * time.Second}

// serveTLS serves with the certificate of now, and wants those of the CA, as it was at the beginning.
func serveTLS(t *testing.T, cert etcdtest.Cert, ca *etcdtest.CA, versions ...uint16) *secureServer {
	t.Helper()
	pem, err := os.ReadFile(ca.File)
	require.NoError(t, err)
	trusted := x509.NewCertPool()
	require.True(t, trusted.AppendCertsFromPEM(pem))
	s := &secureServer{}
	config := &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			now, err := tls.LoadX509KeyPair(cert.CertFile, cert.KeyFile)
			return &now, err
		},
		ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs:  trusted,
		VerifyConnection: func(state tls.ConnectionState) error {
			s.shown.Store(state.PeerCertificates[0])
			return nil
		},
	}
	if len(versions) > 0 {
		config.MinVersion, config.MaxVersion = versions[0], versions[0]
	}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s.address = plain.Addr().String()
	rpc := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	pb.RegisterKVServer(rpc, &server{})
	served := make(chan error, 1)
	go func() { served <- rpc.Serve(&listener{plain, s}) }()
	t.Cleanup(func() {
		rpc.Stop()
		assert.NoError(t, <-served)
	})
	return s
}

// call connects with what load returns, and makes a call.
func (s *secureServer) call(t *testing.T, load func() (*tls.Config, error)) error {
	t.Helper()
	cc, err := grpc.NewClient("passthrough:///"+s.address, grpc.WithTransportCredentials(auth.TLS(load)))
	require.NoError(t, err)
	defer cc.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = pb.NewKVClient(cc).Range(ctx, &pb.RangeRequest{Key: []byte("key")})
	return etcd.Plain(err)
}

func TestACertificateThatIsReplacedIsShownFromTheNextHandshakeOn(t *testing.T) {
	t.Parallel()
	ca := etcdtest.NewCA(t)
	s := serveTLS(t, ca.Issue(t), ca)
	cert := ca.Issue(t, etcdtest.Named("first"))
	files := filesOf(cert)
	require.NoError(t, s.call(t, files.Load))
	require.Equal(t, "first", s.shown.Load().Subject.CommonName)
	ca.Renew(t, cert, etcdtest.Named("second"))
	require.NoError(t, s.call(t, files.Load))
	require.Equal(t, "second", s.shown.Load().Subject.CommonName)
}

func TestFilesThatAreReplacedAreUsedByAConnectionThatIsThere(t *testing.T) {
	t.Parallel()
	ca, clients := etcdtest.NewCA(t), etcdtest.NewCA(t)
	its := ca.Issue(t)
	s := serveTLS(t, its, clients)
	cert := clients.Issue(t, etcdtest.Named("first"))
	files := filesOf(cert)
	files.CA = ca.File
	cc, err := grpc.NewClient("passthrough:///"+s.address, grpc.WithTransportCredentials(auth.TLS(files.Load)), grpc.WithConnectParams(briskly))
	require.NoError(t, err)
	defer cc.Close()
	call := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := pb.NewKVClient(cc).Range(ctx, &pb.RangeRequest{Key: []byte("key")}, grpc.WaitForReady(true))
		return err
	}
	require.NoError(t, call())
	ca.Replace(t)
	ca.Renew(t, its)
	clients.Renew(t, cert, etcdtest.Named("second"))
	s.hangUp()
	require.Eventually(t, func() bool {
		return call() == nil && s.shown.Load().Subject.CommonName == "second"
	}, 10*time.Second, 10*time.Millisecond)
}

func TestFilesThatAreGoneAreToldByTheHandshake(t *testing.T) {
	t.Parallel()
	ca := etcdtest.NewCA(t)
	s := serveTLS(t, ca.Issue(t), ca)
	cert := ca.Issue(t)
	require.NoError(t, os.Remove(cert.KeyFile))
	require.ErrorContains(t, s.call(t, filesOf(cert).Load), cert.KeyFile)
}

func TestAServerOfAnotherCAIsNotTrusted(t *testing.T) {
	t.Parallel()
	ca := etcdtest.NewCA(t)
	s := serveTLS(t, ca.Issue(t), ca)
	files := filesOf(ca.Issue(t))
	files.CA = etcdtest.NewCA(t).File
	require.ErrorContains(t, s.call(t, files.Load), "certificate signed by unknown authority")
}

func TestACertificateThatTheServerRefusesIsToldWithItsReason(t *testing.T) {
	t.Parallel()
	ca, other := etcdtest.NewCA(t), anotherCA(t)
	its := ca.Issue(t)
	for version, name := range map[uint16]string{tls.VersionTLS12: "TLS 1.2", tls.VersionTLS13: "TLS 1.3"} {
		s := serveTLS(t, its, ca, version)
		for reason, cert := range map[string]etcdtest.Cert{
			"unknown certificate authority": other.Issue(t),
			"expired certificate":           ca.Issue(t, etcdtest.Expired()),
		} {
			t.Run(name+", "+reason, func(t *testing.T) {
				t.Parallel()
				files := filesOf(cert)
				files.CA = ca.File
				for range 10 { // the alert must win each time
					require.ErrorContains(t, s.call(t, files.Load), reason)
				}
			})
		}
	}
}

func TestAWriteThatFailsTellsWhyTheServerHasGone(t *testing.T) {
	t.Parallel()
	ca, other := etcdtest.NewCA(t), anotherCA(t)
	s := serveTLS(t, ca.Issue(t), ca, tls.VersionTLS13)
	files := filesOf(other.Issue(t))
	files.CA = ca.File
	raw, err := net.Dial("tcp", s.address)
	require.NoError(t, err)
	conn, _, err := auth.TLS(files.Load).ClientHandshake(t.Context(), "127.0.0.1", raw)
	require.NoError(t, err, "in TLS 1.3 the server judges after it")
	defer conn.Close()
	require.Eventually(t, func() bool {
		_, err = conn.Write(make([]byte, 1<<10))
		return err != nil
	}, 10*time.Second, time.Millisecond)
	require.ErrorContains(t, err, "unknown certificate authority")
}

func TestAWriteThatFailsForAnotherReasonTellsThat(t *testing.T) {
	t.Parallel()
	ca := etcdtest.NewCA(t)
	s := serveTLS(t, ca.Issue(t), ca)
	raw, err := net.Dial("tcp", s.address)
	require.NoError(t, err)
	conn, _, err := auth.TLS(filesOf(ca.Issue(t)).Load).ClientHandshake(t.Context(), "127.0.0.1", raw)
	require.NoError(t, err)
	require.NoError(t, raw.Close())
	_, err = conn.Write([]byte("hello"))
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestAConfigurationThatChoosesItsCertificateIsLeftAlone(t *testing.T) {
	t.Parallel()
	ca := etcdtest.NewCA(t)
	s := serveTLS(t, ca.Issue(t), ca)
	config, err := filesOf(ca.Issue(t, etcdtest.Named("not this one"))).Load()
	require.NoError(t, err)
	cert := ca.Issue(t, etcdtest.Named("this one"))
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		chosen, err := tls.LoadX509KeyPair(cert.CertFile, cert.KeyFile)
		return &chosen, err
	}
	require.NoError(t, s.call(t, func() (*tls.Config, error) { return config, nil }))
	require.Equal(t, "this one", s.shown.Load().Subject.CommonName)
}

func TestOfSeveralCertificatesTheServersIsSent(t *testing.T) {
	t.Parallel()
	ca, other := etcdtest.NewCA(t), anotherCA(t)
	s := serveTLS(t, ca.Issue(t), ca)
	config, err := filesOf(other.Issue(t)).Load()
	require.NoError(t, err)
	its, err := filesOf(ca.Issue(t, etcdtest.Named("this one"))).Load()
	require.NoError(t, err)
	config.Certificates, config.RootCAs = append(config.Certificates, its.Certificates...), its.RootCAs
	load := auth.TLS(func() (*tls.Config, error) { return config, nil }).Clone()
	cc, err := grpc.NewClient("passthrough:///"+s.address, grpc.WithTransportCredentials(load))
	require.NoError(t, err)
	defer cc.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	require.True(t, auth.IsAnswered(ctx, cc))
	require.Equal(t, "this one", s.shown.Load().Subject.CommonName)
	require.Nil(t, config.GetClientCertificate, "the user's own is not changed")
}
