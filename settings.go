package discov

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/discov-go/discov/internal/auth"
	"github.com/discov-go/discov/internal/conn"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// maxTTL is etcd's MaxLeaseTTL, in seconds.
const maxTTL = 9_000_000_000

// options is what the PubOptions set; nobody writes it after NewPublisher. It stands apart from them, so that those who
// read it need not know the Publisher.
type options struct {
	id              int64
	hasID           bool
	exactKey        bool
	backgroundStart bool
	hasAccount      bool
	hasFiles        bool
	ttl             time.Duration
	timeout         time.Duration
	drain           time.Duration
	life            context.Context
	logger          *slog.Logger
	observers       []func(Event)
	health          *healthCheck // nil where there is none

	target conn.Target // without its endpoints

	errs []error // of options that were given what cannot be kept here
}

// guarded lets the user's code tune the settings. A panic in it is the user's: it becomes an error.
func guarded(tune func(*clientv3.Config)) func(*clientv3.Config) error {
	return func(config *clientv3.Config) (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("%w: WithClientConfig panicked: %v", ErrOptions, p)
			}
		}()
		tune(config)
		if config.RejectOldCluster && config.Username != "" && config.Password != "" {
			return fmt.Errorf("%w: RejectOldCluster with an account: the client would ask before it can log in", ErrOptions)
		}
		return nil
	}
}

// defaultOptions is the one place of every default.
func defaultOptions() options {
	return options{
		ttl:     defaultTTL,
		timeout: defaultTimeout,
		logger:  slog.Default(),
	}
}

// knownKey returns the full key of a Publisher of key, empty where it will end with a lease ID.
func (o *options) knownKey(key string) string {
	switch {
	case o.exactKey:
		return key
	case o.hasID:
		return withID(key, o.id)
	default:
		return ""
	}
}

func withID(key string, id int64) string { return key + "/" + strconv.FormatInt(id, 10) }

func (o *options) reject(kind error, format string, args ...any) {
	o.errs = append(o.errs, fmt.Errorf("discov: %w: %s", kind, fmt.Sprintf(format, args...)))
}

// validate returns all that is wrong with what the user gave, joined.
func (o options) validate(endpoints []string, key, value string) error {
	found := o
	found.errs = slices.Clone(o.errs)
	if key == "" {
		found.reject(ErrKey, "the key is empty")
	}
	if value == "" {
		found.reject(ErrValue, "the value of key %q is empty", key)
	}
	found.validateKeeping()
	if found.target.Client != nil {
		found.validateOwnClient()
	} else {
		found.validateEndpoints(endpoints)
		found.validateAccess()
	}
	return errors.Join(found.errs...)
}

// validateKeeping is about how the key is kept.
func (o *options) validateKeeping() {
	if err := checkID(o.id); err != nil && o.hasID {
		o.reject(ErrID, "WithId(%d): %v", o.id, err)
	}
	if o.exactKey && o.hasID {
		o.reject(ErrOptions, "WithExactKey excludes WithId(%d)", o.id)
	}
	if err := checkTTL(o.ttl); err != nil {
		o.reject(ErrTTL, "WithTTL(%v): %v", o.ttl, err)
	}
	if err := checkTimeout(o.timeout, o.ttl); err != nil {
		o.reject(ErrTimeout, "WithTimeout(%v): %v", o.timeout, err)
	}
	if o.health != nil {
		for _, err := range o.health.policy.wrong() {
			o.reject(ErrOptions, "WithHealthCheck: %v", err)
		}
	}
	if o.drain < 0 {
		o.reject(ErrOptions, "WithDrain(%v): want zero or more", o.drain)
	}
}

func (o *options) validateOwnClient() {
	if o.hasAccount || o.hasFiles || o.target.TLS != nil || o.target.Tuning != nil {
		o.reject(ErrOptions, "WithClient excludes the options that make a client: account, TLS and client config")
	}
}

func (o *options) validateEndpoints(endpoints []string) {
	if len(endpoints) == 0 {
		o.reject(ErrEndpoints, "there are none")
		return
	}
	withTLS := o.target.TLS != nil || o.hasFiles
	if err := conn.CheckTogether(endpoints, withTLS); err != nil {
		o.reject(ErrEndpoints, "%v", err)
	}
	for _, endpoint := range endpoints {
		if err := conn.CheckEndpoint(endpoint); err != nil {
			o.reject(ErrEndpoints, "%q: %v", conn.Masked(endpoint), err)
		}
		if withTLS && conn.IsPlaintext(endpoint) {
			o.reject(ErrTLS, "endpoint %q is plaintext, yet TLS was asked for", conn.Masked(endpoint))
		}
	}
}

// validateAccess is about what the library's client shows to etcd, and demands of it.
func (o *options) validateAccess() {
	if o.hasAccount {
		if err := checkAccount(o.target.Login, "user", "password"); err != nil {
			o.reject(ErrAccount, "WithPubEtcdAccount: %v", err)
		}
	}
	if !o.hasFiles {
		return
	}
	if o.target.TLS != nil {
		o.reject(ErrOptions, "WithTLSConfig excludes WithPubEtcdTLS")
	}
	for _, err := range o.target.Files.Check() {
		o.reject(ErrTLS, "WithPubEtcdTLS: %v", err)
	}
}

// The checks of single values, which are those of a Config too.

func checkID(id int64) error {
	if id <= 0 {
		return errors.New("want a positive number")
	}
	return nil
}

func checkTTL(ttl time.Duration) error {
	if ttl < time.Second || ttl%time.Second != 0 || ttl/time.Second > maxTTL {
		return fmt.Errorf("want whole seconds, from 1s to %ds", int64(maxTTL))
	}
	return nil
}

// checkTimeout relates the timeout to the TTL, unless that is bad by itself.
func checkTimeout(timeout, ttl time.Duration) error {
	switch {
	case timeout < minTimeout:
		return fmt.Errorf("want %v or more", minTimeout)
	case checkTTL(ttl) == nil && (timeout-1)/mostTTLs >= ttl: // timeout > mostTTLs*ttl, which may overflow
		return fmt.Errorf("want no more than %d times the TTL of %v: a link that needs longer keeps no lease", mostTTLs, ttl)
	}
	return nil
}

// checkAccount names the user and the password as they are named where they were given. It never tells the password itself.
func checkAccount(account auth.Login, user, password string) error {
	switch {
	case account.User == "" && account.Pass == "":
		return fmt.Errorf("%s and %s are empty", user, password)
	case account.User == "":
		return fmt.Errorf("%s is set, %s is not", password, user)
	case account.Pass == "":
		return fmt.Errorf("%s is %q, %s is not set", user, account.User, password)
	case !utf8.ValidString(account.User) || !utf8.ValidString(account.Pass):
		return fmt.Errorf("user %q or its password is not UTF-8, which etcd wants", account.User)
	}
	return nil
}

// isNowhere reports whether a value is an address to listen on, not one to call: ":8080", "0.0.0.0:8080" or "[::]:8080".
func isNowhere(value string) bool {
	host, port, err := net.SplitHostPort(value)
	if _, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}
