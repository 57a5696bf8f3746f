package etcdtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// A CA issues certificates for a test, and lives as long as it.
type CA struct {
	File string // its certificate, in PEM

	dir string

	mu     sync.Mutex
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

// A Cert is a certificate on disk, with its key and the CA that it is from.
type Cert struct {
	CertFile, KeyFile, CAFile string

	ca *CA
}

// A CertOption changes a certificate that is issued.
type CertOption func(*x509.Certificate)

// Expired makes the certificate one that was valid until an hour ago.
func Expired() CertOption {
	return func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}
}

// ForHosts makes the certificate valid for these names and addresses only. Defaults to localhost and 127.0.0.1.
func ForHosts(hosts ...string) CertOption {
	return func(c *x509.Certificate) {
		c.DNSNames, c.IPAddresses = nil, nil
		for _, h := range hosts {
			if ip := net.ParseIP(h); ip != nil {
				c.IPAddresses = append(c.IPAddresses, ip)
			} else {
				c.DNSNames = append(c.DNSNames, h)
			}
		}
	}
}

// Named sets the common name, which etcd with auth takes for the user of a client without a password.
func Named(cn string) CertOption {
	return func(c *x509.Certificate) { c.Subject.CommonName = cn }
}

// NewCA returns a new CA.
func NewCA(t testing.TB) *CA {
	t.Helper()
	ca := &CA{dir: t.TempDir()}
	ca.File = filepath.Join(ca.dir, "ca.pem")
	ca.Replace(t)
	return ca
}

// Replace makes the CA another one under the same file name. What it issued before stays as it is.
func (ca *CA) Replace(t testing.TB) {
	t.Helper()
	ca.mu.Lock()
	defer ca.mu.Unlock()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("etcdtest: CA key: %v", err)
	}
	ca.serial++
	self := &x509.Certificate{
		SerialNumber:          big.NewInt(ca.serial),
		Subject:               pkix.Name{CommonName: fmt.Sprintf("etcdtest CA %d", ca.serial)},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, self, self, &key.PublicKey, key)
	if err != nil {
		t.Fatalf("etcdtest: CA: %v", err)
	}
	if self, err = x509.ParseCertificate(der); err != nil {
		t.Fatalf("etcdtest: CA: %v", err)
	}
	ca.cert, ca.key = self, key
	writePEM(t, ca.File, "CERTIFICATE", der)
}

// Issue returns a new certificate, good for servers and for clients.
func (ca *CA) Issue(t testing.TB, opts ...CertOption) Cert {
	t.Helper()
	dir, err := os.MkdirTemp(ca.dir, "cert")
	if err != nil {
		t.Fatalf("etcdtest: %v", err)
	}
	c := Cert{
		CertFile: filepath.Join(dir, "cert.pem"),
		KeyFile:  filepath.Join(dir, "key.pem"),
		CAFile:   ca.File,
		ca:       ca,
	}
	ca.Renew(t, c, opts...)
	return c
}

// Renew issues a new certificate under the file names of c. Each file is replaced at once, but one after the other, as
// a rotation does: who reads in between finds a key that doesn't fit.
func (ca *CA) Renew(t testing.TB, c Cert, opts ...CertOption) {
	t.Helper()
	der, key, err := ca.sign(opts...)
	if err != nil {
		t.Fatalf("etcdtest: certificate: %v", err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatalf("etcdtest: key: %v", err)
	}
	writePEM(t, c.KeyFile, "EC PRIVATE KEY", keyDER)
	writePEM(t, c.CertFile, "CERTIFICATE", der)
}

func (ca *CA) sign(opts ...CertOption) ([]byte, *ecdsa.PrivateKey, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	ca.serial++
	c := &x509.Certificate{
		SerialNumber: big.NewInt(ca.serial),
		Subject:      pkix.Name{CommonName: "etcdtest"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	ForHosts("localhost", "127.0.0.1")(c)
	for _, opt := range opts {
		opt(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca.cert, &key.PublicKey, ca.key)
	return der, key, err
}

// clientCertificate returns one for this package's own clients, from the CA as it is now.
func (ca *CA) clientCertificate() (*tls.Certificate, error) {
	der, key, err := ca.sign()
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// writePEM replaces the file at once, so that no reader finds half of it.
func writePEM(t testing.TB, name, kind string, der []byte) {
	t.Helper()
	data := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(name+".new", data, 0o600); err != nil {
		t.Fatalf("etcdtest: %v", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatalf("etcdtest: %v", err)
	}
}
