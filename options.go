package discov

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// defaultTTL is go-zero's: long enough for a restart of etcd, short enough for callers of a process that died.
	defaultTTL = 10 * time.Second
	// maxTTL is etcd's MaxLeaseTTL, in seconds.
	maxTTL = 9_000_000_000
	// defaultTimeout bounds a call of the user's.
	defaultTimeout = 5 * time.Second
	// minTimeout leaves room for a connection, a grant and a put on one network.
	minTimeout = 100 * time.Millisecond
)

// A PubOption customises a Publisher. An option never fails by itself: KeepAlive returns what is wrong with it.
type PubOption func(*Publisher)

// options is what the PubOptions set; nobody writes it after NewPublisher.
type options struct {
	id              int64
	hasID           bool
	exactKey        bool
	ttl             time.Duration
	timeout         time.Duration
	backgroundStart bool
	life            context.Context
	logger          *slog.Logger
	observer        func(Event)

	account *login
	files   *tlsFiles
	tls     *tls.Config
	client  *clientv3.Client
	tune    *clientTuning

	errs []error
}

// clientTuning has an identity, unlike the func in it: Publishers that were given the same option share a connection.
type clientTuning struct {
	apply func(*clientv3.Config)
}

// defaultOptions is the one place of every default.
func defaultOptions() options {
	return options{
		ttl:     defaultTTL,
		timeout: defaultTimeout,
		logger:  slog.Default(),
	}
}

func (o *options) reject(kind error, format string, args ...any) {
	o.errs = append(o.errs, fmt.Errorf("discov: %w: %s", kind, fmt.Sprintf(format, args...)))
}

// WithId appends id to the key, as <key>/<id>, in place of the lease ID. It must be positive. Defaults to the lease ID.
func WithId(id int64) PubOption { //nolint:revive // go-zero's name, kept so that its users change only the import
	return func(p *Publisher) {
		if id <= 0 {
			p.opts.reject(ErrID, "WithId(%d): want a positive number", id)
		}
		p.opts.id, p.opts.hasID = id, true
	}
}

// WithExactKey publishes the key as it stands, with nothing appended. It excludes WithId. Defaults to off.
func WithExactKey() PubOption {
	return func(p *Publisher) { p.opts.exactKey = true }
}

// WithTTL sets how long the key outlives a process that died, in whole seconds. etcd grants no less than 1.5 times its
// election timeout (2 s by default); [Status] tells what was granted. Defaults to 10 s.
func WithTTL(ttl time.Duration) PubOption {
	return func(p *Publisher) {
		if ttl < time.Second || ttl%time.Second != 0 || ttl/time.Second > maxTTL {
			p.opts.reject(ErrTTL, "WithTTL(%v): want whole seconds, from 1s to %ds", ttl, int64(maxTTL))
		}
		p.opts.ttl = ttl
	}
}

// WithTimeout bounds each call on the Publisher whose context has no deadline; one request to etcd gets half of it. Over
// a link with a round trip of more than a second, set it to at least five round trips. The least is 100 ms. Defaults to
// 5 s.
func WithTimeout(timeout time.Duration) PubOption {
	return func(p *Publisher) {
		if timeout < minTimeout {
			p.opts.reject(ErrTimeout, "WithTimeout(%v): want %v or more", timeout, minTimeout)
		}
		p.opts.timeout = timeout
	}
}

// WithPubEtcdAccount sets the etcd user and password; both are needed. Defaults to no account.
func WithPubEtcdAccount(user, pass string) PubOption {
	return func(p *Publisher) {
		switch {
		case user == "":
			p.opts.reject(ErrAccount, "WithPubEtcdAccount: empty user")
		case pass == "":
			p.opts.reject(ErrAccount, "WithPubEtcdAccount: empty password for user %q", user)
		case !utf8.ValidString(user) || !utf8.ValidString(pass):
			p.opts.reject(ErrAccount, "WithPubEtcdAccount: user %q or its password is not UTF-8, which etcd wants", user)
		}
		p.opts.account = &login{user: user, pass: pass}
	}
}

// WithPubEtcdTLS sets the PEM files of the client's certificate, its key and etcd's CA; all three are needed. They are
// read again at each handshake, so files that are replaced are used from the next connection on. With
// insecureSkipVerify nobody checks who answers: for tests only. Defaults to no TLS, unless an endpoint says https.
func WithPubEtcdTLS(certFile, certKeyFile, caFile string, insecureSkipVerify bool) PubOption {
	return func(p *Publisher) {
		p.opts.files = &tlsFiles{
			cert:               certFile,
			key:                certKeyFile,
			ca:                 caFile,
			insecureSkipVerify: insecureSkipVerify,
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
		p.opts.tls = config
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
		p.opts.client = client
	}
}

// WithClientConfig lets tune have the last word on the settings of the library's client, before each dial: it may be
// called again, from another goroutine, when a connection has to be replaced. RejectOldCluster is an error with an account.
// Publishers given the same PubOption value share a connection. Defaults to the settings that the README lists.
func WithClientConfig(tune func(*clientv3.Config)) PubOption {
	tuning := &clientTuning{apply: tune}
	return func(p *Publisher) {
		if tune == nil {
			p.opts.reject(ErrOptions, "WithClientConfig(nil)")
		}
		p.opts.tune = tuning
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

// validate returns all that is wrong with what the user gave, joined.
func (p *Publisher) validate() error {
	o := p.opts
	o.errs = slices.Clone(o.errs)
	if p.prefix == "" {
		o.reject(ErrKey, "the key is empty")
	}
	if p.Status().Value == "" {
		o.reject(ErrValue, "the value of key %q is empty", p.prefix)
	}
	if o.exactKey && o.hasID {
		o.reject(ErrOptions, "WithExactKey excludes WithId(%d)", o.id)
	}
	if o.client != nil {
		o.validateOwnClient()
		return errors.Join(o.errs...)
	}
	o.validateEndpoints(p.endpoints)
	o.validateFiles()
	return errors.Join(o.errs...)
}

func (o *options) validateOwnClient() {
	if o.account != nil || o.files != nil || o.tls != nil || o.tune != nil {
		o.reject(ErrOptions, "WithClient excludes the options that make a client: account, TLS and client config")
	}
}

func (o *options) validateEndpoints(endpoints []string) {
	if len(endpoints) == 0 {
		o.reject(ErrEndpoints, "there are none")
		return
	}
	first := slices.Min(endpoints)
	if _, err := url.Parse("etcd:///" + first); err != nil { // the client makes its target of the first
		o.reject(ErrEndpoints, "%q: %v", first, errors.Unwrap(err))
	}
	secure := 0
	for _, endpoint := range endpoints {
		if err := checkEndpoint(endpoint); err != nil {
			o.reject(ErrEndpoints, "%q: %v", endpoint, err)
		}
		if isSecure(endpoint) {
			secure++
		}
	}
	if secure > 0 && secure < len(endpoints) && o.tls == nil && o.files == nil {
		o.reject(ErrEndpoints, "some say https and some do not: %s", strings.Join(endpoints, ", "))
	}
	if o.tls == nil && o.files == nil {
		return
	}
	for _, endpoint := range endpoints {
		if scheme := schemeOf(endpoint); scheme == "http" || scheme == "unix" {
			o.reject(ErrTLS, "endpoint %q is plaintext, yet TLS was asked for", endpoint)
		}
	}
}

func (o *options) validateFiles() {
	if o.files == nil {
		return
	}
	if o.tls != nil {
		o.reject(ErrOptions, "WithTLSConfig excludes WithPubEtcdTLS")
	}
	_, certErr := o.files.loadCertificate()
	_, caErr := o.files.loadCA()
	for _, err := range []error{certErr, caErr} {
		if err != nil {
			o.reject(ErrTLS, "%v", err)
		}
	}
}

// schemeOf is the scheme of an endpoint, empty where it has none.
func schemeOf(endpoint string) string {
	if scheme, _, ok := strings.Cut(endpoint, "://"); ok {
		return scheme
	}
	if scheme, _, ok := strings.Cut(endpoint, ":"); ok && (scheme == "unix" || scheme == "unixs") {
		return scheme
	}
	return ""
}

// isSecure says whether an endpoint asks for TLS by itself.
func isSecure(endpoint string) bool {
	scheme := schemeOf(endpoint)
	return scheme == "https" || scheme == "unixs"
}

func checkEndpoint(endpoint string) error {
	switch scheme := schemeOf(endpoint); scheme {
	case "":
		return checkHostPort(endpoint)
	case "unix", "unixs":
		if strings.TrimLeft(strings.TrimPrefix(endpoint, scheme+":"), "/") == "" {
			return errors.New("no socket path")
		}
		return nil
	case "http", "https":
		u, err := url.Parse(endpoint)
		if err != nil {
			return errors.Unwrap(err)
		}
		if u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			return errors.New("want no more than scheme://host:port")
		}
		return checkHostPort(u.Host)
	default:
		return fmt.Errorf("unknown scheme %q", scheme)
	}
}

func checkHostPort(hostPort string) error {
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		return fmt.Errorf("want host:port: %w", err)
	}
	if host == "" || strings.ContainsAny(host, " \t\r\n/") {
		return fmt.Errorf("bad host %q", host)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("bad port %q", port)
	}
	return nil
}
