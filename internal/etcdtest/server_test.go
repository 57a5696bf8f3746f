package etcdtest_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func short(t testing.TB) context.Context { return within(t, 5*time.Second) }

func put(t testing.TB, c *clientv3.Client, key, value string, opts ...clientv3.OpOption) {
	t.Helper()
	_, err := c.Put(short(t), key, value, opts...)
	require.NoError(t, err)
}

func get(t testing.TB, c *clientv3.Client, key string) string {
	t.Helper()
	resp, err := c.Get(short(t), key)
	require.NoError(t, err)
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

func grant(t testing.TB, c *clientv3.Client, ttl int64) *clientv3.LeaseGrantResponse {
	t.Helper()
	lease, err := c.Grant(short(t), ttl)
	require.NoError(t, err)
	return lease
}

// client is one that the servers count.
func client(t testing.TB, cfg clientv3.Config) *clientv3.Client {
	t.Helper()
	cfg.Logger = zap.NewNop()
	cfg.DialTimeout = 3 * time.Second
	c, err := clientv3.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func TestRestartKeepsEveryKeyAndTheAddress(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	endpoints := s.Endpoints()
	put(t, s.Client(t), "k", "v")
	s.Restart()
	require.Equal(t, "v", get(t, s.Client(t), "k"))
	require.Equal(t, endpoints, s.Endpoints())
}

func TestStopFreesTheAddressAndMayBeRepeated(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	s.Stop()
	s.Stop()
	_, err := net.Dial("tcp", s.Endpoints()[0])
	require.ErrorContains(t, err, "refused")
	s.Start()
	s.Start()
	require.Empty(t, get(t, s.Client(t), "k"))
}

func TestStopDoesNotWaitForWatchesAndKeepalives(t *testing.T) {
	t.Parallel()
	for _, with := range []string{"plaintext", "TLS"} {
		t.Run(with, func(t *testing.T) {
			t.Parallel()
			opts := []etcdtest.Option{etcdtest.QuickTicks()}
			if with == "TLS" {
				opts = append(opts, etcdtest.WithServerTLS(etcdtest.NewCA(t).Issue(t)))
			}
			s := etcdtest.Start(t, opts...)
			c := s.Client(t)
			_, err := c.KeepAlive(within(t, time.Minute), grant(t, c, 60).ID)
			require.NoError(t, err)
			watch := c.Watch(within(t, time.Minute), "k", clientv3.WithCreatedNotify())
			<-watch
			start := time.Now()
			s.Stop()
			require.Less(t, time.Since(start), 3*time.Second)
		})
	}
}

func TestWipeForgetsEveryKeyAndBeginsTheRevisionsAnew(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	before, err := s.Client(t).Put(short(t), "k", "v")
	require.NoError(t, err)
	grant(t, s.Client(t), 60)
	s.Wipe()
	after, err := s.Client(t).Get(short(t), "k")
	require.NoError(t, err)
	require.Empty(t, after.Kvs)
	require.Less(t, after.Header.Revision, before.Header.Revision)
	require.Equal(t, before.Header.ClusterId, after.Header.ClusterId)
	s.RequireLeases(t, 0)
}

func TestRestoreForgetsWhatCameAfterTheSnapshot(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	put(t, s.Client(t), "k", "old")
	s.Snapshot()
	put(t, s.Client(t), "k", "new")
	for range 2 {
		s.Restore()
		require.Equal(t, "old", get(t, s.Client(t), "k"))
	}
}

func TestTheLeastTTLIsTwoSecondsAndOneWithQuickTicks(t *testing.T) {
	t.Parallel()
	require.EqualValues(t, 2, grant(t, etcdtest.Start(t).Client(t), 1).TTL)
	require.EqualValues(t, 1, grant(t, etcdtest.Start(t, etcdtest.QuickTicks()).Client(t), 1).TTL)
}

func TestWithDirFindsTheDataOfAnEarlierServer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := etcdtest.Start(t, etcdtest.QuickTicks(), etcdtest.WithDir(dir))
	put(t, first.Client(t), "k", "v")
	first.Stop()
	second := etcdtest.Start(t, etcdtest.QuickTicks(), etcdtest.WithDir(dir))
	require.Equal(t, "v", get(t, second.Client(t), "k"))
}

func TestRequestsCountsByMethodAndLeavesItsOwnOut(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	etcdtest.Observe(t, s, "")
	put(t, s.Client(t), "ours", "v")

	c := client(t, clientv3.Config{Endpoints: s.Endpoints()})
	put(t, c, "k", "v")
	put(t, c, "k", "w")
	get(t, c, "k")
	_, err := c.KeepAliveOnce(short(t), grant(t, c, 60).ID)
	require.NoError(t, err)
	watching, cancel := context.WithCancel(context.Background())
	defer cancel()
	watch := c.Watch(watching, "k", clientv3.WithCreatedNotify())
	<-watch
	require.Equal(t, map[string]int{
		"Put": 2, "Range": 1, "LeaseGrant": 1,
		"LeaseKeepAlive": 1, "LeaseKeepAlive.msg": 1,
		"Watch": 1, "Watch.msg": 1, "Watch.create": 1,
	}, s.Requests())
	require.Equal(t, 1, s.OpenStreams("Watch"))
	requireWatchers(t, s, 1)
	require.Equal(t, 1, s.Connections())

	cancel()
	etcdtest.RequireSoon(t, 5*time.Second, func() bool { return s.Watchers() == 0 && s.OpenStreams("Watch") == 0 })
	c.Close()
	etcdtest.RequireSoon(t, 5*time.Second, func() bool { return s.Connections() == 0 })
	etcdtest.RequireSoon(t, 5*time.Second, func() bool { return s.OpenStreams("LeaseKeepAlive") == 0 })
}

// requireWatchers waits: an answer is counted once it was sent.
func requireWatchers(t *testing.T, s interface{ Watchers() int }, n int) {
	t.Helper()
	etcdtest.RequireSoon(t, 5*time.Second, func() bool { return s.Watchers() == n }, "%d watchers", n)
}

func TestWatchersKnowsWhichOfAStreamAreCancelled(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	c := client(t, clientv3.Config{Endpoints: s.Endpoints()})
	one, cancelOne := context.WithCancel(context.Background())
	two, cancelTwo := context.WithCancel(context.Background())
	defer cancelTwo()
	<-c.Watch(one, "a", clientv3.WithCreatedNotify())
	<-c.Watch(two, "b", clientv3.WithCreatedNotify())
	requireWatchers(t, s, 2)
	require.Equal(t, 1, s.OpenStreams("Watch"))
	cancelOne()
	requireWatchers(t, s, 1)
	require.Equal(t, 1, s.OpenStreams("Watch"))
	s.Stop()
	require.Zero(t, s.Watchers())
	require.Zero(t, s.Connections())
}

func TestNoSpaceFailsPutsAndGrantsUntilDisarm(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	c := s.Client(t)
	lease := grant(t, c, 60)
	s.NoSpace(t)
	_, err := c.Put(short(t), "k", "v")
	require.ErrorIs(t, err, rpctypes.ErrNoSpace)
	_, err = c.Grant(short(t), 60)
	require.ErrorIs(t, err, rpctypes.ErrNoSpace)
	_, err = c.KeepAliveOnce(short(t), lease.ID)
	require.NoError(t, err)
	s.Disarm(t)
	put(t, c, "k", "v")
}

func TestCorruptFailsWritesUntilDisarm(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	s.Corrupt(t)
	_, err := s.Client(t).Put(short(t), "k", "v")
	require.ErrorIs(t, err, rpctypes.ErrCorrupt)
	s.Disarm(t)
	put(t, s.Client(t), "k", "v")
}

func TestCompactForgetsHistory(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	put(t, s.Client(t), "k", "1")
	put(t, s.Client(t), "k", "2")
	s.Compact(t)
	resp := <-s.Client(t).Watch(short(t), "k", clientv3.WithRev(2))
	require.ErrorIs(t, resp.Err(), rpctypes.ErrCompacted)
}

func TestClusterElectsAnotherLeaderWhenOneStops(t *testing.T) {
	t.Parallel()
	c := etcdtest.StartCluster(t, 3, etcdtest.QuickTicks())
	require.Len(t, c.Endpoints(), 3)
	require.Len(t, c.Followers(), 2)
	old := c.Leader()
	put(t, c.Client(t), "k", "v")
	old.Stop()
	require.NotSame(t, old, c.Leader())
	require.Equal(t, "v", get(t, c.Client(t), "k"))
	old.Start()
	require.Equal(t, "v", get(t, old.Client(t), "k"))
}

func TestClusterIsWipedAndRestoredAsOne(t *testing.T) {
	t.Parallel()
	c := etcdtest.StartCluster(t, 3, etcdtest.QuickTicks())
	put(t, c.Client(t), "k", "v")
	c.Snapshot()
	c.Wipe()
	require.Empty(t, get(t, c.Client(t), "k"))
	c.Restore()
	require.Equal(t, "v", get(t, c.Client(t), "k"))
	msg := failure(t, func(t testing.TB) { etcdtest.StartCluster(t, 1).Members[0].Wipe(); t.Fatal("fine alone") })
	require.Contains(t, msg, "fine alone")
}

func TestAReplacedMemberHasTheDataAtAnotherAddress(t *testing.T) {
	t.Parallel()
	c := etcdtest.StartCluster(t, 3, etcdtest.QuickTicks())
	put(t, c.Client(t), "k", "v")
	old := c.Leader()
	replaced := c.Replace(old)
	require.True(t, slices.Contains(c.Members, replaced))
	require.False(t, slices.Contains(c.Members, old))
	require.NotContains(t, c.Endpoints(), replaced.Endpoints()[0])
	require.Equal(t, "v", get(t, replaced.Client(t), "k"))
	c.Wipe()
	require.Empty(t, get(t, replaced.Client(t), "k"))
}

func TestIsolatedLeaderIsReplacedAndComesBack(t *testing.T) {
	t.Parallel()
	c := etcdtest.StartCluster(t, 3, etcdtest.QuickTicks())
	old := c.Leader()
	etcdtest.Isolate(c, old)
	etcdtest.RequireSoon(t, 10*time.Second, func() bool { return c.Leader() != old })
	put(t, c.Leader().Client(t), "k", "v")
	_, err := old.Client(t).Get(within(t, 300*time.Millisecond), "k")
	require.Error(t, err)
	etcdtest.Rejoin(c, old)
	require.Equal(t, "v", get(t, old.Client(t), "k"))
}

func TestRequireSoonSaysWhatDidNotHappen(t *testing.T) {
	t.Parallel()
	msg := failure(t, func(t testing.TB) {
		etcdtest.RequireSoon(t, time.Millisecond, func() bool { return false }, "%d keys", 3)
	})
	require.Contains(t, msg, "3 keys")
}

// failing is a test that fails without failing the real one.
type failing struct {
	testing.TB
	log      strings.Builder
	failed   bool
	cleanups []func()
}

// failure runs test as a test of its own, with its cleanups, and returns what it said when it failed, and logged after.
func failure(t testing.TB, test func(testing.TB)) string {
	t.Helper()
	f := &failing{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		test(f)
	}()
	<-done
	for len(f.cleanups) > 0 {
		last := f.cleanups[len(f.cleanups)-1]
		f.cleanups = f.cleanups[:len(f.cleanups)-1]
		last()
	}
	require.True(t, f.failed, "did not fail")
	return f.log.String()
}
