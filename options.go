package discov

import (
	"context"
	"crypto/tls"
	"log/slog"
	"time"

	"github.com/discov-go/discov/internal/auth"
	"github.com/discov-go/discov/internal/conn"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// PubOption customises a Publisher. If two options set the same thing, the later one wins. KeepAlive reports options that
// are wrong.
type PubOption func(*Publisher)

// WithId makes the key <key>/<id> instead of <key>/<lease ID>. The id must be positive. If several instances are given the
// same id, the last one to call KeepAlive or Resume takes the key, and the others wait in StateConflict until it is free.
// Defaults to the lease ID.
func WithId(id int64) PubOption { //nolint:revive // go-zero's name, kept so that its users change only the import
	return func(p *Publisher) { p.opts.id, p.opts.hasID = id, true }
}

// WithExactKey publishes at the key itself, with nothing appended. It excludes WithId. Defaults to off.
func WithExactKey() PubOption {
	return func(p *Publisher) { p.opts.exactKey = true }
}

// WithTTL sets for how long the key outlives a process that has died, in whole seconds. etcd grants at least 1.5 times its
// election timeout (2 s by default); [Status] has the TTL that was granted. Defaults to 10 s.
func WithTTL(ttl time.Duration) PubOption {
	return func(p *Publisher) { p.opts.ttl = ttl }
}

// WithTimeout bounds each call whose context has no deadline; a single request to etcd gets half of it. It must be 100 ms
// or more, and at most ten times the TTL. If a round trip to etcd takes longer than a second, use at least five round
// trips, or eight with TLS or an account. For one call that has to wait longer, as for an etcd that starts late, use a
// context with a deadline instead. Defaults to 5 s.
func WithTimeout(timeout time.Duration) PubOption {
	return func(p *Publisher) { p.opts.timeout = timeout }
}

// WithDrain makes Stop, Pause and Run wait for d after the key is gone, so that they return once its callers have noticed:
// stop the server then. d comes on top of the timeout. If the context of the call ends, so does the wait, but not the
// withdrawal. Use 1 s for clients that watch etcd, as go-zero's and gRPC's do, and 6 s for kitex's and hertz's, which read it
// every 5 s. Defaults to zero.
func WithDrain(d time.Duration) PubOption {
	return func(p *Publisher) { p.opts.drain = d }
}

// WithPubEtcdAccount sets the etcd user and password. Both are needed. Defaults to no account.
func WithPubEtcdAccount(user, pass string) PubOption {
	return func(p *Publisher) { p.opts.target.Login, p.opts.hasAccount = auth.Login{User: user, Pass: pass}, true }
}

// WithPubEtcdTLS sets the PEM files of the client's certificate, its key and etcd's CA. All three are needed. They are read
// at each handshake, so that files that were replaced are used from the next connection on. insecureSkipVerify accepts any
// server certificate, and is for tests only. Defaults to no TLS, unless an endpoint has the scheme https.
func WithPubEtcdTLS(certFile, certKeyFile, caFile string, insecureSkipVerify bool) PubOption {
	return func(p *Publisher) {
		p.opts.hasFiles = true
		p.opts.target.Files = auth.Files{
			Cert:               certFile,
			Key:                certKeyFile,
			CA:                 caFile,
			InsecureSkipVerify: insecureSkipVerify,
		}
	}
}

// WithTLSConfig sets the TLS configuration of the connection, which must not be modified afterwards. It excludes
// WithPubEtcdTLS. Publishers share a connection only if they are given the same *tls.Config. Defaults to no TLS, unless an
// endpoint has the scheme https.
func WithTLSConfig(config *tls.Config) PubOption {
	return func(p *Publisher) {
		if config == nil {
			p.opts.reject(ErrOptions, "WithTLSConfig(nil)")
		}
		p.opts.target.TLS = config
	}
}

// WithClient uses the caller's client, which the library never closes or changes, and ignores the endpoints given to
// NewPublisher. The client's settings are the caller's responsibility: without grpc.WithConnectParams and DialKeepAliveTime
// a recovery takes as long as the client needs to reconnect, up to two minutes. Only the connection of the client is used,
// so that wrappers of its KV, Lease or Watcher, such as a namespace, have no effect. Publishers with the same client share
// their streams. Defaults to a client of the library's own.
func WithClient(client *clientv3.Client) PubOption {
	return func(p *Publisher) {
		if client == nil {
			p.opts.reject(ErrOptions, "WithClient(nil)")
		}
		p.opts.target.Client = client
	}
}

// WithClientConfig lets tune override the settings of the library's client before each dial. It may be called more than
// once, from other goroutines, since a connection that stalls is replaced. RejectOldCluster together with an account is an
// error. Publishers share a connection only if they are given the same PubOption value. Defaults to the settings in
// docs/operations.md.
func WithClientConfig(tune func(*clientv3.Config)) PubOption {
	tuning := &conn.Tuning{Apply: guarded(tune)}
	return func(p *Publisher) {
		if tune == nil {
			p.opts.reject(ErrOptions, "WithClientConfig(nil)")
		}
		p.opts.target.Tuning = tuning
	}
}

// WithContext begins to stop the Publisher when ctx is done. Stop waits until that is done. Defaults to context.Background.
func WithContext(ctx context.Context) PubOption {
	return func(p *Publisher) {
		if ctx == nil {
			p.opts.reject(ErrOptions, "WithContext(nil)")
		}
		p.opts.life = ctx
	}
}

// WithBackgroundStart makes KeepAlive register in the background, for as long as that takes, without waiting for etcd. It still
// waits for the first health check, if there is one, and reports bad input only. Defaults to off.
func WithBackgroundStart() PubOption {
	return func(p *Publisher) { p.opts.backgroundStart = true }
}

// WithHealthCheck withdraws the key while check fails, and publishes it again once check succeeds. KeepAlive makes the first
// check, for which it has half of its bound: if that fails, KeepAlive returns nil, and the key is published once check succeeds. A check that panics, or that
// does not return within the policy's timeout, has failed; it is not called again before it has returned. The user's Pause
// overrides it. Defaults to none.
//
// Check what belongs to this instance alone, as the health service of its own server. Never ask anything that all instances
// share, as a database: when that blinks, the whole fleet would withdraw at once.
func WithHealthCheck(check func(context.Context) error, policy HealthPolicy) PubOption {
	return func(p *Publisher) {
		if check == nil {
			p.opts.reject(ErrOptions, "WithHealthCheck(nil, ...)")
			return
		}
		p.opts.health = &healthCheck{check: check, policy: policy}
	}
}

// WithLogger sets the logger. Defaults to slog.Default.
func WithLogger(logger *slog.Logger) PubOption {
	return func(p *Publisher) {
		if logger == nil {
			p.opts.reject(ErrOptions, "WithLogger(nil)")
			return
		}
		p.opts.logger = logger
	}
}

// WithObserver calls observe with every change of state and every failure, in order, one at a time, on a goroutine of the
// Publisher's own. It may be given more than once: every observer is called. While observers are slow, up to 256 events are
// kept; then the oldest are dropped, which the log reports. Defaults to none.
func WithObserver(observe func(Event)) PubOption {
	return func(p *Publisher) {
		if observe == nil {
			p.opts.reject(ErrOptions, "WithObserver(nil)")
			return
		}
		p.opts.observers = append(p.opts.observers, observe)
	}
}
