package etcdtest

import (
	"fmt"
	"net/url"
	"os"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// An Option changes how a member is started. A cluster gives it to every member.
type Option func(*config)

// config is all that a member needs to start, in this process or, as JSON, in a child.
type config struct {
	Name       string
	Dir        string
	ClientPort int
	PeerPort   int
	Cluster    string // every member as name=peerURL, comma-separated
	Joins      bool   // a cluster that runs already

	TickMs     uint
	ElectionMs uint
	TLS        *Cert
	TokenTTL   time.Duration
	BcryptCost uint

	User string // "" leaves auth off
	Pass string
}

// clusterToken is a part of the cluster's ID, so that all restores have the same one.
const clusterToken = "etcdtest"

func defaults() config {
	return config{
		TickMs:     100,
		ElectionMs: 1000,
		TokenTTL:   300 * time.Second,
		BcryptCost: 4, // the least that bcrypt takes
	}
}

// QuickTicks makes elections take a third of a second instead of one, so that members start, restart and fail over
// faster. The least TTL that a server grants then is 1 s instead of 2 s. Not for tests that measure TTLs.
func QuickTicks() Option {
	return func(c *config) { c.TickMs, c.ElectionMs = 20, 300 }
}

// WithDir keeps the data in dir, which outlives the test. Only for one member. Defaults to a directory of the test's.
func WithDir(dir string) Option {
	return func(c *config) { c.Dir = dir }
}

// WithServerTLS serves clients with cert, and accepts only clients with a certificate from the CA in cert.CAFile.
// Peers talk plaintext.
func WithServerTLS(cert Cert) Option {
	return func(c *config) { c.TLS = &cert }
}

// WithAuth turns authentication on, with the account RootUser and with a user who may read and write every key.
// It is off for the few milliseconds between the first start, or a wipe, and the set-up.
func WithAuth(user, pass string) Option {
	return func(c *config) { c.User, c.Pass = user, pass }
}

// WithTokenTTL makes the token of a client expire when it has not been used for d, in whole seconds. Defaults to 300 s.
func WithTokenTTL(d time.Duration) Option {
	return func(c *config) { c.TokenTTL = d }
}

// WithBcryptCost sets the cost of hashing a password. Defaults to 4, the least, about 1 ms; etcd's default is 10.
func WithBcryptCost(cost int) Option {
	return func(c *config) { c.BcryptCost = uint(cost) }
}

// endpoint is what clients are given: bare host:port takes TLS from the client's settings, so https says it is needed.
func (c *config) endpoint() string {
	addr := fmt.Sprintf("127.0.0.1:%d", c.ClientPort)
	if c.TLS != nil {
		return "https://" + addr
	}
	return addr
}

func (c *config) peerURL() string { return fmt.Sprintf("http://127.0.0.1:%d", c.PeerPort) }

// peer is how members are told of this one.
func (c *config) peer() string { return c.Name + "=" + c.peerURL() }

// embed is the server's own configuration for c.
func (c *config) embed() *embed.Config {
	cfg := embed.NewConfig()
	cfg.Name = c.Name
	cfg.Dir = c.Dir

	client := url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", c.ClientPort)}
	if c.TLS != nil {
		client.Scheme = "https"
		cfg.ClientTLSInfo = transport.TLSInfo{
			CertFile:       c.TLS.CertFile,
			KeyFile:        c.TLS.KeyFile,
			TrustedCAFile:  c.TLS.CAFile,
			ClientCertAuth: true,
		}
	}
	peer := url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", c.PeerPort)}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = c.Cluster
	cfg.InitialClusterToken = clusterToken
	if c.Joins {
		cfg.ClusterState = embed.ClusterStateFlagExisting
	}

	cfg.TickMs, cfg.ElectionMs = c.TickMs, c.ElectionMs
	cfg.AuthTokenTTL = uint(c.TokenTTL / time.Second)
	cfg.BcryptCost = c.BcryptCost

	// Nothing here outlives a crash of the machine; a SIGKILL loses nothing that was written.
	cfg.UnsafeNoFsync = true
	// The gateway is a client of its own, which the counts would show.
	cfg.EnableGRPCGateway = false
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(serverLogger())
	return cfg
}

// serverLogger is silent unless ETCDTEST_LOG is set, except for what ends the process.
func serverLogger() *zap.Logger {
	least := zapcore.DPanicLevel
	if os.Getenv("ETCDTEST_LOG") != "" {
		least = zapcore.DebugLevel
	}
	enc := zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig())
	return zap.New(zapcore.NewCore(enc, zapcore.Lock(os.Stderr), least))
}
