package discov

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/discov-go/discov/internal/auth"
	"github.com/discov-go/discov/internal/conn"
)

// EtcdConf is go-zero's name for Config.
type EtcdConf = Config

// Config describes a Publisher in a configuration file, under go-zero's field names and a few more, case-exact:
//
//	Hosts:
//	  - 127.0.0.1:2379
//	Key: user.rpc
//	TTL: 10s
//
// Decode it with encoding/json, or with a YAML library that knows UnmarshalYAML(func(any) error), as go.yaml.in/yaml and
// github.com/goccy/go-yaml do. Unknown fields are errors; a field that is absent keeps the value it had. go-zero's conf
// package loads it too, by its own rules: names in any case, unknown fields ignored.
//
// It is stricter than go-zero's EtcdConf, which ignores a user without a password, two TLS files without the third, and a
// negative ID.
//
//nolint:staticcheck // go-zero's loader needs the tag "optional"
type Config struct {
	// Hosts are etcd's endpoints.
	Hosts []string `json:"Hosts" yaml:"Hosts"`
	// Key is the key, without the ID or lease ID that is appended to it.
	Key string `json:"Key" yaml:"Key"`
	// ID is appended to Key, as with WithId. Zero means the lease ID.
	ID int64 `json:"ID,omitempty,optional" yaml:"ID,omitempty"`
	// User and Pass are the etcd account. Give both or neither.
	User string `json:"User,omitempty,optional" yaml:"User,omitempty"`
	Pass string `json:"Pass,omitempty,optional" yaml:"Pass,omitempty" xml:"-"`
	// CertFile, CertKeyFile and CACertFile are PEM files for TLS. Give all three or none.
	CertFile    string `json:"CertFile,omitempty,optional" yaml:"CertFile,omitempty"`
	CertKeyFile string `json:"CertKeyFile,omitempty,optional" yaml:"CertKeyFile,omitempty"`
	CACertFile  string `json:"CACertFile,omitempty,optional" yaml:"CACertFile,omitempty"`
	// InsecureSkipVerify accepts any server certificate, and is for tests only.
	InsecureSkipVerify bool `json:"InsecureSkipVerify,omitempty,optional" yaml:"InsecureSkipVerify,omitempty"`
	// TTL is as in WithTTL, written as a Go duration ("10s"). Zero means the default.
	TTL time.Duration `json:"TTL,omitempty,optional" yaml:"TTL,omitempty"`
	// Timeout is as in WithTimeout, written as a Go duration ("5s"). Zero means the default.
	Timeout time.Duration `json:"Timeout,omitempty,optional" yaml:"Timeout,omitempty"`
	// ExactKey is as in WithExactKey.
	ExactKey bool `json:"ExactKey,omitempty,optional" yaml:"ExactKey,omitempty"`
	// BackgroundStart is as in WithBackgroundStart.
	BackgroundStart bool `json:"BackgroundStart,omitempty,optional" yaml:"BackgroundStart,omitempty"`
}

// writtenConfig is Config as it is written: with durations as text, since JSON has no other form for them that has a
// unit. They are any, so that a number meets an error that explains it rather than one of the decoder's.
type writtenConfig struct {
	Hosts              []string `json:"Hosts" yaml:"Hosts"`
	Key                string   `json:"Key" yaml:"Key"`
	ID                 int64    `json:"ID,omitempty" yaml:"ID,omitempty"`
	User               string   `json:"User,omitempty" yaml:"User,omitempty"`
	Pass               string   `json:"Pass,omitempty" yaml:"Pass,omitempty"`
	CertFile           string   `json:"CertFile,omitempty" yaml:"CertFile,omitempty"`
	CertKeyFile        string   `json:"CertKeyFile,omitempty" yaml:"CertKeyFile,omitempty"`
	CACertFile         string   `json:"CACertFile,omitempty" yaml:"CACertFile,omitempty"`
	InsecureSkipVerify bool     `json:"InsecureSkipVerify,omitempty" yaml:"InsecureSkipVerify,omitempty"`
	TTL                any      `json:"TTL,omitempty" yaml:"TTL,omitempty"`
	Timeout            any      `json:"Timeout,omitempty" yaml:"Timeout,omitempty"`
	ExactKey           bool     `json:"ExactKey,omitempty" yaml:"ExactKey,omitempty"`
	BackgroundStart    bool     `json:"BackgroundStart,omitempty" yaml:"BackgroundStart,omitempty"`
}

// configFields has the name of each field that may be written.
var configFields = func() map[string]bool {
	names := map[string]bool{}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[Config]()) {
		names[field.Name] = true
	}
	return names
}()

// UnmarshalJSON decodes c, and returns an error that names every unknown field.
func (c *Config) UnmarshalJSON(data []byte) error {
	return c.decode(func(into any) error { return json.Unmarshal(data, into) })
}

// UnmarshalYAML decodes c, and returns an error that names every unknown field.
func (c *Config) UnmarshalYAML(unmarshal func(any) error) error {
	return c.decode(unmarshal)
}

// MarshalJSON returns what UnmarshalJSON reads, without the password.
func (c Config) MarshalJSON() ([]byte, error) { return json.Marshal(c.shown()) }

// MarshalYAML returns what UnmarshalYAML reads, without the password.
func (c Config) MarshalYAML() (any, error) { return c.shown(), nil }

// shown is c as it may be shown: without secrets.
func (c Config) shown() writtenConfig {
	shown := c.written()
	shown.Pass, shown.Hosts = "", nil
	for _, host := range c.Hosts {
		shown.Hosts = append(shown.Hosts, conn.Masked(host))
	}
	return shown
}

// String returns the JSON of c, without the password. A Config in an unexported field of a struct is printed with its password,
// since fmt calls no methods there.
func (c Config) String() string {
	written, err := c.MarshalJSON()
	if err != nil {
		return err.Error()
	}
	return string(written)
}

// Format implements [fmt.Formatter]: all verbs write String.
func (c Config) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.String()) }

// LogValue implements [slog.LogValuer]. The password is left out.
func (c Config) LogValue() slog.Value { return slog.AnyValue(c.shown()) }

// decode reads c twice: the names, for decoders differ in what they do with case and with unknown ones, and the values.
// When it fails, c is as it was.
func (c *Config) decode(unmarshal func(any) error) error {
	var names map[string]any
	if err := unmarshal(&names); err != nil {
		return fmt.Errorf("discov: config: %w", err)
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if !configFields[name] {
			errs = append(errs, fmt.Errorf("discov: config: %w %q", ErrUnknownField, name))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	written := c.written()
	written.Hosts = slices.Clone(written.Hosts) // encoding/json writes into the array it finds
	if err := unmarshal(&written); err != nil {
		return fmt.Errorf("discov: config: %w", err)
	}
	decoded, err := written.config()
	if err != nil {
		return err
	}
	*c = decoded
	return nil
}

func (c Config) written() writtenConfig {
	return writtenConfig{
		Hosts:              c.Hosts,
		Key:                c.Key,
		ID:                 c.ID,
		User:               c.User,
		Pass:               c.Pass,
		CertFile:           c.CertFile,
		CertKeyFile:        c.CertKeyFile,
		CACertFile:         c.CACertFile,
		InsecureSkipVerify: c.InsecureSkipVerify,
		TTL:                writtenDuration(c.TTL),
		Timeout:            writtenDuration(c.Timeout),
		ExactKey:           c.ExactKey,
		BackgroundStart:    c.BackgroundStart,
	}
}

func (w writtenConfig) config() (Config, error) {
	ttl, ttlErr := readDuration("TTL", ErrTTL, w.TTL)
	timeout, timeoutErr := readDuration("Timeout", ErrTimeout, w.Timeout)
	return Config{
		Hosts:              w.Hosts,
		Key:                w.Key,
		ID:                 w.ID,
		User:               w.User,
		Pass:               w.Pass,
		CertFile:           w.CertFile,
		CertKeyFile:        w.CertKeyFile,
		CACertFile:         w.CACertFile,
		InsecureSkipVerify: w.InsecureSkipVerify,
		TTL:                ttl,
		Timeout:            timeout,
		ExactKey:           w.ExactKey,
		BackgroundStart:    w.BackgroundStart,
	}, errors.Join(ttlErr, timeoutErr)
}

// writtenDuration leaves zero out: it is the default's place.
func writtenDuration(d time.Duration) any {
	if d == 0 {
		return nil
	}
	return d.String()
}

func readDuration(field string, kind error, written any) (time.Duration, error) {
	switch written := written.(type) {
	case nil:
		return 0, nil
	case string:
		d, err := time.ParseDuration(written)
		if err != nil {
			return 0, fmt.Errorf("discov: config: %w: %s: %w", kind, field, err)
		}
		return d, nil
	default:
		return 0, fmt.Errorf(`discov: config: %w: %s is %v, want a duration with its unit, such as "10s"`, kind, field, written)
	}
}

// Validate returns all that is wrong with c, joined. Each error names the field and wraps the error that KeepAlive would
// return for it: ErrEndpoints, ErrKey, ErrID, ErrAccount, ErrTLS, ErrTTL, ErrTimeout or ErrOptions. Validate reads no files
// and dials nothing.
func (c Config) Validate() error {
	var errs []error
	reject := func(kind error, format string, args ...any) {
		errs = append(errs, fmt.Errorf("discov: config: %w: %s", kind, fmt.Sprintf(format, args...)))
	}
	c.validateHosts(reject)
	if c.Key == "" {
		reject(ErrKey, "Key is empty")
	}
	if err := checkID(c.ID); err != nil && c.ID != 0 {
		reject(ErrID, "ID is %d: %v", c.ID, err)
	}
	if c.ExactKey && c.ID > 0 {
		reject(ErrOptions, "ExactKey leaves no place for ID %d", c.ID)
	}
	if account := (auth.Login{User: c.User, Pass: c.Pass}); account != (auth.Login{}) {
		if err := checkAccount(account, "User", "Pass"); err != nil {
			reject(ErrAccount, "%v", err)
		}
	}
	c.validateTLS(reject)
	if err := checkTTL(c.TTL); err != nil && c.TTL != 0 {
		reject(ErrTTL, "TTL is %v: %v", c.TTL, err)
	}
	if err := checkTimeout(c.Timeout, cmp.Or(c.TTL, defaultTTL)); err != nil && c.Timeout != 0 {
		reject(ErrTimeout, "Timeout is %v: %v", c.Timeout, err)
	}
	return errors.Join(errs...)
}

func (c Config) validateHosts(reject func(kind error, format string, args ...any)) {
	if len(c.Hosts) == 0 {
		reject(ErrEndpoints, "Hosts is empty")
		return
	}
	withTLS := c.CertFile != ""
	if err := conn.CheckTogether(c.Hosts, withTLS); err != nil {
		reject(ErrEndpoints, "Hosts: %v", err)
	}
	for i, host := range c.Hosts {
		if err := conn.CheckEndpoint(host); err != nil {
			reject(ErrEndpoints, "Hosts[%d] is %q: %v", i, conn.Masked(host), err)
		}
		if withTLS && conn.IsPlaintext(host) {
			reject(ErrTLS, "Hosts[%d]: %q is plaintext, yet TLS was asked for", i, conn.Masked(host))
		}
	}
}

func (c Config) validateTLS(reject func(kind error, format string, args ...any)) {
	files := []struct{ field, path string }{
		{"CertFile", c.CertFile}, {"CertKeyFile", c.CertKeyFile}, {"CACertFile", c.CACertFile},
	}
	var missing []string
	for _, file := range files {
		if file.path == "" {
			missing = append(missing, file.field)
		}
	}
	if len(missing) == len(files) {
		if c.InsecureSkipVerify {
			reject(ErrTLS, "InsecureSkipVerify is set, CertFile, CertKeyFile and CACertFile are not")
		}
		return
	}
	for _, field := range missing {
		reject(ErrTLS, "%s is missing: CertFile, CertKeyFile and CACertFile go together", field)
	}
}

// HasAccount reports whether c has a user and a password, as go-zero's EtcdConf does.
func (c Config) HasAccount() bool { return c.User != "" && c.Pass != "" }

// HasID reports whether c has an ID, as go-zero's EtcdConf does.
func (c Config) HasID() bool { return c.ID > 0 }

// HasTLS reports whether c has all TLS files, as go-zero's EtcdConf does.
func (c Config) HasTLS() bool { return c.CertFile != "" && c.CertKeyFile != "" && c.CACertFile != "" }

// NewPublisher validates c and returns a Publisher of value. The opts override c.
func (c Config) NewPublisher(value string, opts ...PubOption) (*Publisher, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return NewPublisher(c.Hosts, c.Key, value, append(c.options(), opts...)...), nil
}

// options returns c, which is valid, as options.
func (c Config) options() []PubOption {
	var opts []PubOption
	if c.HasID() {
		opts = append(opts, WithId(c.ID))
	}
	if c.HasAccount() {
		opts = append(opts, WithPubEtcdAccount(c.User, c.Pass))
	}
	if c.HasTLS() {
		opts = append(opts, WithPubEtcdTLS(c.CertFile, c.CertKeyFile, c.CACertFile, c.InsecureSkipVerify))
	}
	if c.TTL != 0 {
		opts = append(opts, WithTTL(c.TTL))
	}
	if c.Timeout != 0 {
		opts = append(opts, WithTimeout(c.Timeout))
	}
	if c.ExactKey {
		opts = append(opts, WithExactKey())
	}
	if c.BackgroundStart {
		opts = append(opts, WithBackgroundStart())
	}
	return opts
}
