package etcdtest

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// The account that may do everything, where auth is on.
const (
	RootUser = "root"
	RootPass = "root-pass"
)

// userAgent marks this package's own clients, so that the counts leave them out.
const userAgent = "etcdtest"

// callTimeout bounds every call of this package to etcd: longer than an election, shorter than anyone's patience.
const callTimeout = 5 * time.Second

// access is the way into a member or a cluster for the test itself, past whatever Path the subject of the test takes.
type access struct {
	t         testing.TB
	endpoints []string
	auth      bool
	ca        *CA // nil without TLS

	wipes, restores atomic.Int64 // how often the data were lost, for observers

	clientsMu sync.Mutex // guards all below
	client    *clientv3.Client
	of        past // when client was made
	stale     []*clientv3.Client
}

// past says which of its data a server has: where wipes grew, nothing known before is there any more; where restores
// grew, what is there may be older.
type past struct{ wipes, restores int64 }

func (a *access) past() past { return past{a.wipes.Load(), a.restores.Load()} }

func newAccess(t testing.TB, cfg config, endpoints []string) *access {
	a := &access{t: t, endpoints: endpoints, auth: cfg.User != ""}
	if cfg.TLS != nil {
		a.ca = cfg.TLS.ca
	}
	t.Cleanup(func() {
		a.clientsMu.Lock()
		defer a.clientsMu.Unlock()
		for _, c := range append(a.stale, a.client) {
			if c != nil {
				c.Close()
			}
		}
	})
	return a
}

// Endpoints returns where clients reach it: host:port, or https://host:port with TLS. They never change.
func (a *access) Endpoints() []string { return slices.Clone(a.endpoints) }

// Client returns a client with every right, on a connection of its own. It is shared by all who ask, and is closed at
// the end of the test that started the server. Its requests don't count in Requests.
//
// With auth, a wipe or a restore makes it useless, and the next Client is a new one: its token names a raft index, and a
// server that is not there yet lets every call with such a token wait.
func (a *access) Client(t testing.TB) *clientv3.Client {
	t.Helper()
	a.clientsMu.Lock()
	defer a.clientsMu.Unlock()
	past := a.past()
	if a.client != nil && a.auth && a.of != past {
		a.stale = append(a.stale, a.client) // somebody may still be in a call
		a.client = nil
	}
	if a.client == nil {
		c, err := a.dial(a.auth)
		if err != nil {
			t.Fatalf("etcdtest: client for %v: %v", a.endpoints, err)
		}
		a.client, a.of = c, past
	}
	return a.client
}

// newClient returns another client like Client, which the caller closes.
func (a *access) newClient() (*clientv3.Client, error) { return a.dial(a.auth) }

func (a *access) dial(auth bool) (*clientv3.Client, error) {
	cfg := clientConfig(a.endpoints)
	if a.ca != nil {
		cfg.TLS = a.tlsConfig()
	}
	if auth {
		cfg.Username, cfg.Password = RootUser, RootPass
	}
	for end := time.Now().Add(callTimeout); ; {
		c, err := clientv3.New(cfg)
		if !errors.Is(err, rpctypes.ErrLeaderChanged) || time.Now().After(end) { // a login that met an election is not retried
			return c, err
		}
	}
}

// tlsConfig trusts everybody: what is wrong with the server's certificate is for the subject of the test to find.
func (a *access) tlsConfig() *tls.Config {
	return &tls.Config{
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return a.ca.clientCertificate()
		},
	}
}

func clientConfig(endpoints []string) clientv3.Config {
	return clientv3.Config{
		Endpoints:            slices.Clone(endpoints),
		DialTimeout:          callTimeout,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithUserAgent(userAgent),
			// Back within a moment of the server's return: tests wait for this client.
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 200 * time.Millisecond},
				MinConnectTimeout: 2 * time.Second,
			}),
		},
	}
}

// do makes a call with the root client, and fails the test when it fails.
func (a *access) do(t testing.TB, what string, call func(context.Context, *clientv3.Client) error) {
	t.Helper()
	c := a.Client(t)
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if err := call(ctx, c); err != nil {
		t.Fatalf("etcdtest: %s: %v", what, err)
	}
}

// Leases returns how many leases there are.
func (a *access) Leases(t testing.TB) int {
	t.Helper()
	return len(a.LeaseIDs(t))
}

// LeaseIDs returns the leases that there are.
func (a *access) LeaseIDs(t testing.TB) (ids []clientv3.LeaseID) {
	t.Helper()
	a.do(t, "list leases", func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Leases(ctx)
		if err == nil {
			for _, lease := range resp.Leases {
				ids = append(ids, lease.ID)
			}
		}
		return err
	})
	return ids
}

// RequireLeases fails the test unless there are n leases now.
func (a *access) RequireLeases(t testing.TB, n int) {
	t.Helper()
	if got := a.Leases(t); got != n {
		t.Fatalf("etcdtest: %d leases, want %d", got, n)
	}
}

// AddUser creates a user with a role of the same name and no permission yet.
func (a *access) AddUser(t testing.TB, user, pass string) {
	t.Helper()
	a.do(t, "add user "+user, func(ctx context.Context, c *clientv3.Client) error { return addUser(ctx, c, user, pass) })
}

// Grant lets user do perm with the keys from key to rangeEnd, or with the one key where rangeEnd is "".
// See clientv3.GetPrefixRangeEnd for a prefix.
func (a *access) Grant(t testing.TB, user, key, rangeEnd string, perm clientv3.PermissionType) {
	t.Helper()
	a.do(t, "grant to "+user, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.RoleGrantPermission(ctx, user, key, rangeEnd, perm)
		return err
	})
}

// Revoke takes back what Grant gave for the same range.
func (a *access) Revoke(t testing.TB, user, key, rangeEnd string) {
	t.Helper()
	a.do(t, "revoke from "+user, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.RoleRevokePermission(ctx, user, key, rangeEnd)
		return err
	})
}

// SetPassword changes a password, which makes the tokens of that user invalid.
func (a *access) SetPassword(t testing.TB, user, pass string) {
	t.Helper()
	a.do(t, "change password of "+user, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.UserChangePassword(ctx, user, pass)
		return err
	})
}

// DeleteUser removes a user.
func (a *access) DeleteUser(t testing.TB, user string) {
	t.Helper()
	a.do(t, "delete user "+user, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.UserDelete(ctx, user)
		return err
	})
}

// AuthDisable turns authentication off, for a server that was started WithAuth.
func (a *access) AuthDisable(t testing.TB) {
	t.Helper()
	a.do(t, "disable auth", func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.AuthDisable(ctx)
		return err
	})
}

// AuthEnable turns it on again.
func (a *access) AuthEnable(t testing.TB) {
	t.Helper()
	a.do(t, "enable auth", func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.AuthEnable(ctx)
		return err
	})
}

// NoSpace raises the alarm of a full disk: from now on puts and grants fail. All else goes on.
func (a *access) NoSpace(t testing.TB) {
	t.Helper()
	a.alarm(t, pb.AlarmType_NOSPACE)
}

// Corrupt raises the alarm of corrupt data: from now on puts, deletes, grants and revokes fail. Reads go on.
func (a *access) Corrupt(t testing.TB) {
	t.Helper()
	a.alarm(t, pb.AlarmType_CORRUPT)
}

func (a *access) alarm(t testing.TB, alarm pb.AlarmType) {
	t.Helper()
	a.do(t, "raise alarm", func(ctx context.Context, c *clientv3.Client) error {
		status, err := c.Status(ctx, a.endpoints[0])
		if err != nil {
			return err
		}
		// The client has no call to raise an alarm; the server takes one from anybody with the right.
		_, err = pb.NewMaintenanceClient(c.ActiveConnection()).Alarm(ctx, &pb.AlarmRequest{
			Action:   pb.AlarmRequest_ACTIVATE,
			MemberID: status.Header.MemberId,
			Alarm:    alarm,
		})
		return err
	})
}

// Disarm ends every alarm.
func (a *access) Disarm(t testing.TB) {
	t.Helper()
	a.do(t, "disarm", func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.AlarmDisarm(ctx, &clientv3.AlarmMember{})
		return err
	})
}

// Compact forgets the history before the current revision.
func (a *access) Compact(t testing.TB) {
	t.Helper()
	a.do(t, "compact", func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Get(ctx, "etcdtest")
		if err != nil {
			return err
		}
		_, err = c.Compact(ctx, resp.Header.Revision)
		return err
	})
}

// setUpAuth gives an empty server the accounts of WithAuth.
func (a *access) setUpAuth(user, pass string) error {
	if !a.auth {
		return nil
	}
	c, err := a.dial(false)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*callTimeout)
	defer cancel()
	if status, err := c.AuthStatus(ctx); err == nil && status.Enabled { // 3.4 has no such request
		return nil // the data of WithDir may hold the accounts already
	}
	if err := addUser(ctx, c, RootUser, RootPass); err != nil {
		return err
	}
	if err := addUser(ctx, c, user, pass); err != nil {
		return err
	}
	const all = "\x00" // from the first key, without an end
	if _, err := c.RoleGrantPermission(ctx, user, all, all, clientv3.PermissionType(clientv3.PermReadWrite)); err != nil {
		return err
	}
	_, err = c.AuthEnable(ctx)
	return err
}

func addUser(ctx context.Context, c *clientv3.Client, user, pass string) error {
	if _, err := c.RoleAdd(ctx, user); err != nil {
		return err
	}
	if _, err := c.UserAdd(ctx, user, pass); err != nil {
		return err
	}
	_, err := c.UserGrantRole(ctx, user, user)
	return err
}
