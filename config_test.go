package discov

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	yamlv3 "go.yaml.in/yaml/v3"
	yamlv4 "go.yaml.in/yaml/v4"
)

// configDecoders are the ways in: all must agree.
var configDecoders = map[string]func([]byte, any) error{
	"json":         json.Unmarshal,
	"yaml v3":      yamlv3.Unmarshal,
	"yaml v4":      yamlv4.Unmarshal,
	"yaml v4 load": func(data []byte, into any) error { return yamlv4.Load(data, into) },
	"yaml v3, known fields": func(data []byte, into any) error {
		decoder := yamlv3.NewDecoder(bytes.NewReader(data))
		decoder.KnownFields(true)
		return decoder.Decode(into)
	},
	"yaml v4, known fields": func(data []byte, into any) error {
		return yamlv4.Load(data, into, yamlv4.WithKnownFields())
	},
}

// service is a configuration as users have it, with Config inside.
type service struct {
	Name string `json:"Name" yaml:"Name"`
	Etcd Config `json:"Etcd" yaml:"Etcd"`
}

const fullConfig = `{"Name": "user.rpc", "Etcd": {
  "Hosts": ["10.0.0.1:2379", "10.0.0.2:2379"], "Key": "user.rpc", "ID": 42, "User": "root", "Pass": "secret",
  "CertFile": "a.pem", "CertKeyFile": "b.pem", "CACertFile": "c.pem", "InsecureSkipVerify": true,
  "TTL": "15s", "Timeout": "2s", "ExactKey": true, "BackgroundStart": true}}`

func TestConfigDecodesEveryFieldFromEveryFormat(t *testing.T) {
	for name, unmarshal := range configDecoders {
		t.Run(name, func(t *testing.T) {
			var got service
			require.NoError(t, unmarshal([]byte(fullConfig), &got))
			assert.Equal(t, Config{
				Hosts: []string{"10.0.0.1:2379", "10.0.0.2:2379"}, Key: "user.rpc", ID: 42, User: "root", Pass: "secret",
				CertFile: "a.pem", CertKeyFile: "b.pem", CACertFile: "c.pem", InsecureSkipVerify: true,
				TTL: 15 * time.Second, Timeout: 2 * time.Second, ExactKey: true, BackgroundStart: true,
			}, got.Etcd)
		})
	}
}

func TestConfigNamesEveryUnknownField(t *testing.T) {
	for name, unmarshal := range configDecoders {
		t.Run(name, func(t *testing.T) {
			var got service
			err := unmarshal([]byte(`{"Etcd": {"Hosts": ["h:1"], "key": "user.rpc", "Passwd": "x"}}`), &got)
			require.ErrorIs(t, err, ErrUnknownField)
			assert.ErrorContains(t, err, `"key"`, "names are case-exact")
			assert.ErrorContains(t, err, `"Passwd"`)
			assert.Zero(t, got.Etcd, "a Config that failed to decode is as it was")
		})
	}
}

func TestConfigTakesDurationsWithTheirUnitOnly(t *testing.T) {
	for name, unmarshal := range configDecoders {
		t.Run(name, func(t *testing.T) {
			var got service
			err := unmarshal([]byte(`{"Etcd": {"TTL": 10, "Timeout": "soon"}}`), &got)
			require.ErrorIs(t, err, ErrTTL)
			require.ErrorIs(t, err, ErrTimeout)
			assert.ErrorContains(t, err, "TTL is 10")
			assert.ErrorContains(t, err, "soon")
			assert.Zero(t, got.Etcd)
		})
	}
}

func TestConfigNamesAFieldOfTheWrongType(t *testing.T) {
	for name, unmarshal := range configDecoders {
		t.Run(name, func(t *testing.T) {
			require.Error(t, unmarshal([]byte(`{"Etcd": {"ID": "many"}}`), new(service)))
			require.Error(t, unmarshal([]byte(`{"Etcd": ["Hosts"]}`), new(service)))
		})
	}
}

func TestConfigKeepsWhatTheFileLeavesOut(t *testing.T) {
	for name, unmarshal := range configDecoders {
		t.Run(name, func(t *testing.T) {
			hosts := []string{"default:1"}
			got := service{Etcd: Config{Hosts: hosts, TTL: 20 * time.Second, User: "u"}}
			require.NoError(t, unmarshal([]byte(`{"Etcd": {"Hosts": ["other:1"], "User": "v", "Key": "k"}}`), &got))
			assert.Equal(t, Config{Hosts: []string{"other:1"}, Key: "k", TTL: 20 * time.Second, User: "v"}, got.Etcd)
			assert.Equal(t, []string{"default:1"}, hosts, "the default's slice is its owner's")
		})
	}
}

func TestConfigTakesYAMLAsPeopleWriteIt(t *testing.T) {
	const written = `
base: &base
  Hosts: [127.0.0.1:2379]
  User: 007
Etcd:
  <<: *base
  Key: user.rpc
  Pass: 123456
  TTL: 1m
`
	for name, unmarshal := range configDecoders {
		if name == "json" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			var got struct {
				Base any    `yaml:"base"`
				Etcd Config `yaml:"Etcd"`
			}
			require.NoError(t, unmarshal([]byte(written), &got))
			assert.Equal(t, Config{
				Hosts: []string{"127.0.0.1:2379"}, Key: "user.rpc", User: "007", Pass: "123456", TTL: time.Minute,
			}, got.Etcd)
		})
	}
}

func TestConfigReadsWhatItWrites(t *testing.T) {
	var config Config
	require.NoError(t, json.Unmarshal([]byte(`{"Hosts": ["h:1"], "Key": "k", "TTL": "15s", "Timeout": "90s"}`), &config))
	writers := map[string]struct {
		marshal   func(any) ([]byte, error)
		unmarshal func([]byte, any) error
	}{
		"json":    {json.Marshal, json.Unmarshal},
		"yaml v3": {yamlv3.Marshal, yamlv3.Unmarshal},
		"yaml v4": {yamlv4.Marshal, yamlv4.Unmarshal},
	}
	for name, writer := range writers {
		t.Run(name, func(t *testing.T) {
			written, err := writer.marshal(config)
			require.NoError(t, err)
			var got Config
			require.NoError(t, writer.unmarshal(written, &got), "%s", written)
			assert.Equal(t, config, got)
		})
	}
}

// goodConfig is valid; tests spoil one thing each.
func goodConfig() Config {
	return Config{Hosts: []string{"127.0.0.1:2379"}, Key: "user.rpc"}
}

func TestConfigValidateNamesTheField(t *testing.T) {
	tests := map[string]struct {
		spoil func(*Config)
		kind  error
		field string
	}{
		"no hosts":            {func(c *Config) { c.Hosts = nil }, ErrEndpoints, "Hosts is empty"},
		"empty host":          {func(c *Config) { c.Hosts = []string{"h:1", ""} }, ErrEndpoints, "Hosts[1]"},
		"host without a port": {func(c *Config) { c.Hosts = []string{"h"} }, ErrEndpoints, "Hosts[0]"},
		"no key":              {func(c *Config) { c.Key = "" }, ErrKey, "Key"},
		"negative id":         {func(c *Config) { c.ID = -1 }, ErrID, "ID is -1"},
		"id and exact key":    {func(c *Config) { c.ID, c.ExactKey = 1, true }, ErrOptions, "ExactKey"},
		"user alone":          {func(c *Config) { c.User = "u" }, ErrAccount, "Pass is not"},
		"password alone":      {func(c *Config) { c.Pass = "p" }, ErrAccount, "User is not"},
		"one TLS file":        {func(c *Config) { c.CACertFile = "c" }, ErrTLS, "CertKeyFile is missing"},
		"two TLS files":       {func(c *Config) { c.CertFile, c.CertKeyFile = "a", "b" }, ErrTLS, "CACertFile is missing"},
		"skip verify alone":   {func(c *Config) { c.InsecureSkipVerify = true }, ErrTLS, "InsecureSkipVerify"},
		"plaintext with TLS": {func(c *Config) {
			c.Hosts = []string{"http://h:1"}
			c.CertFile, c.CertKeyFile, c.CACertFile = "a", "b", "c"
		}, ErrTLS, `"http://h:1" is plaintext`},
		"some with TLS":    {func(c *Config) { c.Hosts = []string{"https://h:1", "h:2"} }, ErrEndpoints, "h:2"},
		"user not UTF-8":   {func(c *Config) { c.User, c.Pass = "\xff", "p" }, ErrAccount, `user "\xff"`},
		"negative TTL":     {func(c *Config) { c.TTL = -time.Second }, ErrTTL, "TTL is -1s"},
		"half a second":    {func(c *Config) { c.TTL = 1500 * time.Millisecond }, ErrTTL, "TTL is 1.5s"},
		"negative timeout": {func(c *Config) { c.Timeout = -time.Second }, ErrTimeout, "Timeout is -1s"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			config := goodConfig()
			test.spoil(&config)
			err := config.Validate()
			require.ErrorIs(t, err, test.kind)
			require.ErrorContains(t, err, test.field)
			publisher, err := config.NewPublisher("127.0.0.1:8080")
			require.ErrorIs(t, err, test.kind)
			require.Nil(t, publisher)
		})
	}
}

func TestConfigValidateReturnsAllThatIsWrongAtOnce(t *testing.T) {
	err := Config{User: "u", CertFile: "a", TTL: -1, Timeout: -1, ID: -1}.Validate()
	for _, kind := range []error{ErrEndpoints, ErrKey, ErrID, ErrAccount, ErrTLS, ErrTTL, ErrTimeout} {
		assert.ErrorIs(t, err, kind)
	}
}

func TestConfigNeverTellsThePassword(t *testing.T) {
	config := Config{Pass: "hunter2"}
	assert.NotContains(t, config.Validate().Error(), "hunter2")
}

func TestConfigSaysItselfInOptions(t *testing.T) {
	config := goodConfig()
	config.ID, config.User, config.Pass = 42, "u", "p"
	config.CertFile, config.CertKeyFile, config.CACertFile, config.InsecureSkipVerify = "a", "b", "c", true
	config.TTL, config.Timeout, config.BackgroundStart = 15*time.Second, 2*time.Second, true
	publisher, err := config.NewPublisher("127.0.0.1:8080", WithTimeout(3*time.Second))
	require.NoError(t, err)
	want := NewPublisher(config.Hosts, "user.rpc", "127.0.0.1:8080", WithId(42), WithPubEtcdAccount("u", "p"),
		WithPubEtcdTLS("a", "b", "c", true), WithTTL(15*time.Second), WithBackgroundStart(), WithTimeout(3*time.Second))
	assert.Equal(t, want.opts, publisher.opts)
	assert.Equal(t, want.endpoints, publisher.endpoints)
	assert.Equal(t, want.prefix, publisher.prefix)

	config = goodConfig()
	config.ExactKey = true
	publisher, err = config.NewPublisher("127.0.0.1:8080")
	require.NoError(t, err)
	want = NewPublisher(config.Hosts, "user.rpc", "127.0.0.1:8080", WithExactKey())
	assert.Equal(t, want.opts, publisher.opts)
	require.NoError(t, publisher.validate(), "what Validate lets pass, a Publisher does too")
}

// FuzzConfigJSON: nothing that can be written makes decoding panic; what decodes is written and read as the same again,
// and stays as valid as it was.
func FuzzConfigJSON(f *testing.F) {
	f.Add([]byte(`{"Hosts":["127.0.0.1:2379"],"Key":"user.rpc","TTL":"10s"}`))
	f.Add([]byte(`{"Hosts":null,"ID":-1,"TTL":10,"Timeout":"-5s"}`))
	f.Add([]byte(`{"Hosts":["http://h:1","unix:///s"],"Key":"k","User":"u","CertFile":"a"}`))
	f.Add([]byte(`{"Key":"a","Key":"b","key":"c"}`))
	f.Add([]byte(`null`))
	f.Add([]byte(`[{}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var config Config
		if err := json.Unmarshal(data, &config); err != nil {
			return
		}
		written, err := json.Marshal(config)
		require.NoError(t, err)
		var again Config
		require.NoError(t, json.Unmarshal(written, &again), "%s", written)
		again.Pass = config.Pass // which is never written
		require.Equal(t, config, again)
		first, second := config.Validate(), again.Validate()
		require.Equal(t, first == nil, second == nil)
		if first != nil {
			for _, err := range joined(first) {
				require.Error(t, errors.Unwrap(err), "each error wraps its kind")
			}
			return
		}
		publisher, err := config.NewPublisher("value")
		require.NoError(t, err)
		if config.CertFile == "" { // which would be read
			require.NoError(t, publisher.validate(), "what Validate lets pass, a Publisher does too")
		}
	})
}

// joined takes apart what errors.Join made.
func joined(err error) []error {
	var all interface{ Unwrap() []error }
	if !errors.As(err, &all) {
		return nil
	}
	return all.Unwrap()
}
