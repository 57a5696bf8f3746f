package etcdtest_test

import (
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestABumpedRestoreForgetsWhatCameAfterTheSnapshotButTheRevisionDoesNotGoBack(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	c := s.Client(t)
	put(t, c, "k", "old", clientv3.WithLease(grant(t, c, 60).ID))
	s.Snapshot()
	for range 2 {
		newer, err := c.Put(short(t), "k", "new")
		require.NoError(t, err)
		watch := c.Watch(short(t), "k", clientv3.WithRev(newer.Header.Revision+1))
		s.RestoreBumped(1000)
		restored, err := c.Get(short(t), "k")
		require.NoError(t, err)
		require.Equal(t, "old", string(restored.Kvs[0].Value))
		require.Greater(t, restored.Header.Revision, newer.Header.Revision)
		require.Equal(t, newer.Header.ClusterId, restored.Header.ClusterId)
		s.RequireLeases(t, 1)
		var ended error
		for response := range watch {
			ended = response.Err()
		}
		require.ErrorIs(t, ended, rpctypes.ErrCompacted)
		s.Snapshot() // so that the next one is later still
	}
}

func TestAMemberThatLimpsAnswersLateAndTheOthersDoNot(t *testing.T) {
	t.Parallel()
	cluster := etcdtest.StartProcessCluster(t, 3, etcdtest.QuickTicks())
	follower := cluster.Followers()[0]
	alone := client(t, clientv3.Config{Endpoints: follower.Endpoints()})
	end := follower.Limp(40*time.Millisecond, 15*time.Millisecond)
	var slowest time.Duration
	for range 20 {
		began := time.Now()
		get(t, alone, "k")
		slowest = max(slowest, time.Since(began))
	}
	require.Greater(t, slowest, 20*time.Millisecond)
	end()
	end()
	put(t, alone, "k", "v")
	follower.Restart()
	require.Equal(t, "v", get(t, alone, "k"))
}
