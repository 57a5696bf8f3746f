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

// A PubOption customises a Publisher. Of two that set the same, the later one counts. An option never fails by itself:
// KeepAlive returns what is wrong with it.
type PubOption func(*Publisher)

// WithId appends id to the key, as <key>/<id>, in place of the lease ID. It must be positive. Defaults to the lease ID.
func WithId(id int64) PubOption { //nolint:revive // go-zero's name, kept so that its users change only the import
	return func(p *Publisher) { p.opts.id, p.opts.hasID = id, true }
}

// WithExactKey publishes the key as it stands, with nothing appended. It excludes WithId. Defaults to off.
func WithExactKey() PubOption {
	return func(p *Publisher) { p.opts.exactKey = true }
}

// WithTTL sets how long the key outlives a process that died, in whole seconds. etcd grants no less than 1.5 times its
// election timeout (2 s by default); [Status] tells what was granted. Defaults to 10 s.
func WithTTL(ttl time.Duration) PubOption {
	return func(p *Publisher) { p.opts.ttl = ttl }
}

// WithTimeout bounds each call on the Publisher whose context has no deadline; one request to etcd gets half of it. Over
// a link with a round trip of more than a second, set it to at least five round trips. It is 100 ms or more, and at most ten
// times the TTL: where that is not enough, a round trip takes longer than a lease lasts. For a call that is to wait longer,
// as for an etcd that starts late, use a context with a deadline. Defaults to 5 s.
func WithTimeout(timeout time.Duration) PubOption {
	return func(p *Publisher) { p.opts.timeout = timeout }
}

// WithPubEtcdAccount sets the etcd user and password; both are needed. Defaults to no account.
func WithPubEtcdAccount(user, pass string) PubOption {
	return func(p *Publisher) { p.opts.target.Login, p.opts.hasAccount = auth.Login{User: user, Pass: pass}, true }
}

// WithPubEtcdTLS sets the PEM files of the client's certificate, its key and etcd's CA; all three are needed. They are
// read again at each handshake, so files that are replaced are used from the next connection on. With
// insecureSkipVerify nobody checks who answers: for tests only. Defaults to no TLS, unless an endpoint says https.
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

// WithTLSConfig sets the TLS configuration of the connection, which must not be changed afterwards. It excludes
// WithPubEtcdTLS. Publishers share a connection when they share the *tls.Config. Defaults to no TLS, unless an endpoint
// says https.
func WithTLSConfig(config *tls.Config) PubOption {
	return func(p *Publisher) {
		if config == nil {
			p.opts.reject(ErrOptions, "WithTLSConfig(nil)")
		}
		p.opts.target.TLS = config
	}
}

// WithClient uses the caller's own client, which the library never closes or changes. The endpoints given to
// NewPublisher are not used then, and the client's settings are the caller's business: without WithConnectParams and
// DialKeepAliveTime a return after an outage takes as long as the client's reconnect does, up to two minutes. Its
// connection alone is used: what wraps its KV, Lease or Watcher, as a namespace does, is not. Publishers with the same
// client share their streams. Defaults to a client of the library's.
func WithClient(client *clientv3.Client) PubOption {
	return func(p *Publisher) {
		if client == nil {
			p.opts.reject(ErrOptions, "WithClient(nil)")
		}
		p.opts.target.Client = client
	}
}

// WithClientConfig lets tune override the settings of the library's client, before each dial: it may be
// called again, from another goroutine, when a connection has to be replaced. RejectOldCluster is an error with an account.
// Publishers given the same PubOption value share a connection. Defaults to the settings that the README lists.
func WithClientConfig(tune func(*clientv3.Config)) PubOption {
	tuning := &conn.Tuning{Apply: guarded(tune)}
	return func(p *Publisher) {
		if tune == nil {
			p.opts.reject(ErrOptions, "WithClientConfig(nil)")
		}
		p.opts.target.Tuning = tuning
	}
}

// WithContext ties the registration's life to ctx: when it is done, the Publisher is stopped as by Stop. Defaults to
// context.Background.
func WithContext(ctx context.Context) PubOption {
	return func(p *Publisher) {
		if ctx == nil {
			p.opts.reject(ErrOptions, "WithContext(nil)")
		}
		p.opts.life = ctx
	}
}

// WithBackgroundStart makes KeepAlive return at once, with an error for bad input only, and registers in the
// background, for as long as it takes. Defaults to off.
func WithBackgroundStart() PubOption {
	return func(p *Publisher) { p.opts.backgroundStart = true }
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

// WithObserver calls observe with every change of state and every failure, in order, one at a time, from a goroutine of
// its own. One that is slow misses the oldest of the events that wait, 256 at most; the log says so. Defaults to none.
func WithObserver(observe func(Event)) PubOption {
	return func(p *Publisher) {
		if observe == nil {
			p.opts.reject(ErrOptions, "WithObserver(nil)")
		}
		p.opts.observer = observe
	}
}
