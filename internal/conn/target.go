package conn

import (
	"crypto/tls"
	"slices"
	"strings"

	"github.com/discov-go/discov/internal/auth"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A Target is what a connection is made to, and with. It is comparable: who has an equal one may share the connection.
// Functions and TLS configurations cannot be compared, so the same one must have been given to both.
type Target struct {
	// Login is the account, zero where there is none, and Files the certificates, nil where there are none.
	Login auth.Login
	Files auth.Files
	// TLS is an own configuration, and Tuning what changes the client's settings; nil where there is none.
	TLS    *tls.Config
	Tuning *Tuning
	// Client is the caller's own client. The rest is not used then.
	Client *clientv3.Client

	endpoints string // sorted, each once, a line each
}

// A Tuning changes the settings of a client before it is made. Targets with the same one are equal.
type Tuning struct {
	Apply func(*clientv3.Config) error
}

// To returns the target with these endpoints, whose order does not matter.
func (t Target) To(endpoints []string) Target {
	if t.Client == nil {
		sorted := slices.Clone(endpoints)
		slices.Sort(sorted)
		t.endpoints = strings.Join(slices.Compact(sorted), "\n")
	}
	return t
}

// String returns the endpoints.
func (t Target) String() string { return strings.Join(t.list(), ", ") }

// ShowsPassword reports whether the password of an account travels in the clear over a network, as far as can be told without
// its tuning.
func (t Target) ShowsPassword() bool {
	if t.Login == (auth.Login{}) || t.TLS != nil || t.hasFiles() || t.Tuning != nil {
		return false
	}
	return slices.ContainsFunc(t.list(), func(endpoint string) bool { return !isSecure(endpoint) && !isLocal(endpoint) })
}

func (t Target) list() []string { return strings.Split(t.endpoints, "\n") }

func (t Target) hasFiles() bool { return t.Files != auth.Files{} }
