package auth

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// Files are the PEM files of a client's certificate, its key, and the CA that has signed the server's. They are comparable.
type Files struct {
	Cert, Key, CA      string
	InsecureSkipVerify bool
}

// Load reads the files, and returns all that is wrong with them.
func (f Files) Load() (*tls.Config, error) {
	cert, certErr := f.loadCertificate()
	pool, caErr := f.loadCA()
	if err := errors.Join(certErr, caErr); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		Certificates:       []tls.Certificate{cert},
		RootCAs:            pool,
		InsecureSkipVerify: f.InsecureSkipVerify, //nolint:gosec // the user's explicit choice
	}, nil
}

// Check returns each thing that is wrong with the files.
func (f Files) Check() (errs []error) {
	if _, err := f.loadCertificate(); err != nil {
		errs = append(errs, err)
	}
	if _, err := f.loadCA(); err != nil {
		errs = append(errs, err)
	}
	return errs
}

func (f Files) loadCertificate() (tls.Certificate, error) {
	switch {
	case f.Cert == "" && f.Key == "":
		return tls.Certificate{}, errors.New("no certificate file and no key file")
	case f.Cert == "":
		return tls.Certificate{}, fmt.Errorf("no certificate file for the key file %s", f.Key)
	case f.Key == "":
		return tls.Certificate{}, fmt.Errorf("no key file for the certificate file %s", f.Cert)
	}
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate file %s and key file %s: %w", f.Cert, f.Key, err)
	}
	return cert, nil
}

func (f Files) loadCA() (*x509.CertPool, error) {
	if f.CA == "" {
		return nil, errors.New("no CA file")
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, fmt.Errorf("CA file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA file %s: no certificate in it", f.CA)
	}
	return pool, nil
}
