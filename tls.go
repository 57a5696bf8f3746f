package discov

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"

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

// rotatingTLS is gRPC's transport credentials from files that are read again at each handshake. etcd's own
// transport.TLSInfo follows the certificate and its key, but not the CA.
type rotatingTLS struct {
	credentials.TransportCredentials // of the files as they were first
	files                            *tlsFiles
}

func newRotatingTLS(files *tlsFiles) (*rotatingTLS, error) {
	config, err := files.load()
	if err != nil {
		return nil, err
	}
	return &rotatingTLS{TransportCredentials: credentials.NewTLS(config), files: files}, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (r *rotatingTLS) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	config, err := r.files.load()
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(config).ClientHandshake(ctx, authority, conn)
}

// Clone implements credentials.TransportCredentials.
func (r *rotatingTLS) Clone() credentials.TransportCredentials {
	return &rotatingTLS{TransportCredentials: r.TransportCredentials.Clone(), files: r.files}
}
