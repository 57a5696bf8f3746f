package auth

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"
)

// transportTLS is gRPC's transport credentials with a configuration that is loaded at each handshake, so that files may
// be replaced: etcd's own transport.TLSInfo follows the certificate and its key, but not the CA.
type transportTLS struct {
	credentials.TransportCredentials // for all but the handshake
	load                             func() (*tls.Config, error)
}

// TLS returns gRPC's credentials of TLS, with a configuration that is loaded at each handshake.
func TLS(load func() (*tls.Config, error)) credentials.TransportCredentials {
	return &transportTLS{TransportCredentials: credentials.NewTLS(nil), load: load}
}

// ClientHandshake implements credentials.TransportCredentials.
func (t *transportTLS) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	config, err := t.load()
	if err != nil {
		return nil, nil, err
	}
	secure, info, err := credentials.NewTLS(sendingAlways(config)).ClientHandshake(ctx, authority, conn)
	if err != nil {
		return nil, nil, err
	}
	return &alertConn{secure}, info, nil
}

// sendingAlways returns a configuration that sends its certificate to any server. By itself, Go sends none where the server
// does not list its CA, and what the server then says is that there is no certificate, not what is wrong with it.
func sendingAlways(config *tls.Config) *tls.Config {
	if len(config.Certificates) == 0 || config.GetClientCertificate != nil {
		return config
	}
	config = config.Clone()
	config.GetClientCertificate = func(request *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		for i := range config.Certificates {
			if request.SupportsCertificate(&config.Certificates[i]) == nil {
				return &config.Certificates[i], nil
			}
		}
		return &config.Certificates[0], nil
	}
	return config
}

// Clone implements credentials.TransportCredentials.
func (t *transportTLS) Clone() credentials.TransportCredentials {
	return &transportTLS{TransportCredentials: t.TransportCredentials.Clone(), load: t.load}
}

// alertConn is a TLS connection whose failed writes tell why the server has closed it. In TLS 1.3 a server refuses a
// client's certificate after the handshake: its alert waits to be read while a write meets a broken pipe (because: a
// certificate that had expired showed as "broken pipe" alone, about once in three tries).
type alertConn struct {
	net.Conn
}

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
