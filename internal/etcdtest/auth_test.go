package etcdtest_test

import (
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func account(s *etcdtest.Server, user, pass string) clientv3.Config {
	return clientv3.Config{Endpoints: s.Endpoints(), Username: user, Password: pass}
}

func TestWithAuthGivesTheUserEveryKeyAndStrangersNone(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks(), etcdtest.WithAuth("user", "pass"))
	check := func() {
		put(t, client(t, account(s, "user", "pass")), "k", "v")
		require.Equal(t, "v", get(t, s.Client(t), "k"))
		_, err := client(t, clientv3.Config{Endpoints: s.Endpoints()}).Get(short(t), "k")
		require.ErrorIs(t, err, rpctypes.ErrUserEmpty)
		_, err = clientv3.New(account(s, "user", "wrong"))
		require.ErrorIs(t, err, rpctypes.ErrAuthFailed)
	}
	check()
	s.Restart()
	check()
	s.Wipe()
	require.Empty(t, get(t, s.Client(t), "k"))
	check()
}

func TestGrantAndRevokeMoveWhatAUserMay(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks(), etcdtest.WithAuth("user", "pass"))
	s.AddUser(t, "writer", "pass")
	c := client(t, account(s, "writer", "pass"))
	may := func(key string) bool {
		_, err := c.Put(short(t), key, "v")
		if err != nil {
			require.ErrorIs(t, err, rpctypes.ErrPermissionDenied)
		}
		return err == nil
	}
	require.False(t, may("a/1"))
	end := clientv3.GetPrefixRangeEnd("a/")
	s.Grant(t, "writer", "a/", end, clientv3.PermissionType(clientv3.PermWrite))
	require.True(t, may("a/1"))
	require.False(t, may("b"))
	_, err := c.Get(short(t), "a/1")
	require.ErrorIs(t, err, rpctypes.ErrPermissionDenied)
	s.Revoke(t, "writer", "a/", end)
	require.False(t, may("a/1"))

	s.SetPassword(t, "writer", "other")
	_, err = clientv3.New(account(s, "writer", "pass"))
	require.ErrorIs(t, err, rpctypes.ErrAuthFailed)
	client(t, account(s, "writer", "other"))
	s.DeleteUser(t, "writer")
	_, err = clientv3.New(account(s, "writer", "other"))
	require.ErrorIs(t, err, rpctypes.ErrAuthFailed)
}

func TestAuthCanBeTurnedOffAndOn(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks(), etcdtest.WithAuth("user", "pass"))
	c := client(t, clientv3.Config{Endpoints: s.Endpoints()})
	for range 2 {
		_, err := c.Get(short(t), "k")
		require.ErrorIs(t, err, rpctypes.ErrUserEmpty)
		s.AuthDisable(t)
		get(t, c, "k")
		s.AuthEnable(t)
	}
}

func TestATokenExpiresWhenItIsNotUsed(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks(), etcdtest.WithAuth("user", "pass"), etcdtest.WithTokenTTL(2*time.Second))
	c := client(t, account(s, "user", "pass"))
	get(t, c, "k")
	require.Equal(t, 1, s.Requests()["Authenticate"])
	// Asking would use it, so the clock must do: etcd looks for old tokens once a second.
	<-time.After(4 * time.Second)
	get(t, c, "k")
	require.Equal(t, 2, s.Requests()["Authenticate"])
}
