package discov

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"
)

// tlsFiles are the PEM files of WithPubEtcdTLS.
type tlsFiles struct {
	cert, key, ca      string
	insecureSkipVerify bool
}

// load reads the files, and says all that is wrong with them.
func (f *tlsFiles) load() (*tls.Config, error) {
	cert, certErr := f.loadCertificate()
	pool, caErr := f.loadCA()
	if err := errors.Join(certErr, caErr); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		Certificates:       []tls.Certificate{cert},
		RootCAs:            pool,
		InsecureSkipVerify: f.insecureSkipVerify, //nolint:gosec // the user's explicit choice
	}, nil
}

func (f *tlsFiles) loadCertificate() (tls.Certificate, error) {
	switch {
	case f.cert == "" && f.key == "":
		return tls.Certificate{}, errors.New("no certificate file and no key file")
	case f.cert == "":
		return tls.Certificate{}, fmt.Errorf("no certificate file for the key file %s", f.key)
	case f.key == "":
		return tls.Certificate{}, fmt.Errorf("no key file for the certificate file %s", f.cert)
	}
	cert, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate file %s and key file %s: %w", f.cert, f.key, err)
	}
	return cert, nil
}

func (f *tlsFiles) loadCA() (*x509.CertPool, error) {
	if f.ca == "" {
		return nil, errors.New("no CA file")
	}
	pem, err := os.ReadFile(f.ca)
	if err != nil {
		return nil, fmt.Errorf("CA file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA file %s: no certificate in it", f.ca)
	}
	return pool, nil
}

// transportTLS is gRPC's transport credentials with a configuration that is loaded at each handshake, so that files may
// be replaced: etcd's own transport.TLSInfo follows the certificate and its key, but not the CA.
type transportTLS struct {
	credentials.TransportCredentials // for all but the handshake
	load                             func() (*tls.Config, error)
}

func newTransportTLS(load func() (*tls.Config, error)) *transportTLS {
	return &transportTLS{TransportCredentials: credentials.NewTLS(nil), load: load}
}

// ClientHandshake implements credentials.TransportCredentials.
func (t *transportTLS) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	config, err := t.load()
	if err != nil {
		return nil, nil, err
	}
	secure, info, err := credentials.NewTLS(config).ClientHandshake(ctx, authority, conn)
	if err != nil {
		return nil, nil, err
	}
	return &alertConn{secure}, info, nil
}

// Clone implements credentials.TransportCredentials.
func (t *transportTLS) Clone() credentials.TransportCredentials {
	return &transportTLS{TransportCredentials: t.TransportCredentials.Clone(), load: t.load}
}

// alertConn is a TLS connection whose failed writes tell why the server has closed it. In TLS 1.3 a server refuses a
// client's certificate after the handshake: its alert waits to be read while a write meets a broken pipe.
type alertConn struct {
	net.Conn
}

// alertWait is how long to wait for an alert, which is there already if there is one.
const alertWait = 20 * time.Millisecond

func (c *alertConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err == nil || c.SetReadDeadline(time.Now().Add(alertWait)) != nil {
		return n, err
	}
	if _, alert := c.Read(make([]byte, 1)); alert != nil && strings.Contains(alert.Error(), "tls: ") {
		return n, alert
	}
	return n, err
}
