//go:build slow

// The faults that take their time: make chaos.

package discov_test

import (
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestSlowAnOutageOf90SecondsNeverTakesTheKeyAway(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartProcess(t)
	s := newScene(t, etcd)
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7))
	etcd.Kill()
	s.begin("killed")
	time.Sleep(90 * time.Second)
	etcd.Start()
	s.figure("restart after 90s", s.requireTrue(s.begin("started"), atOnce, pub))
	time.Sleep(10*time.Second + restartLag)
	s.requireNeverAbsent(pub)
	s.requireOneLease(pub)
}

func TestSlowAPathThatSwallowsEverythingForTwiceTheDefaultTTLHasTheKeyBackAtOnce(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	path := etcdtest.NewPath(t, etcd.Endpoints()[0])
	s := newScene(t, etcd)
	pub := s.publish([]string{path.Endpoint()}, "a:1", discov.WithId(7))
	for _, lossy := range []bool{false, true} {
		path.Swallow()
		if lossy {
			path.DeafenCurrent()
		}
		s.begin("swallowing, lossy: %v", lossy)
		time.Sleep(20 * time.Second)
		if lossy {
			path.DeafenCurrent()
		}
		path.Heal()
		s.figure("swallowed for 20s", s.requireTrue(s.begin("healed"), atOnce, pub))
		time.Sleep(10*time.Second + expiryLag)
		s.requireTrue(time.Now(), 0, pub)
	}
}

func TestSlowAFrozenMemberNeverTakesAKeyOfTheDefaultTTLAway(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartProcessCluster(t, 3)
	s := newScene(t, etcd)
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7))
	for _, member := range append(etcd.Followers(), etcd.Leader()) {
		member.Freeze()
		s.begin("frozen")
		time.Sleep(13 * time.Second)
		s.requireNeverAbsent(pub)
		member.Thaw()
		s.requireTrue(s.begin("thawed"), atOnce, pub)
	}
	time.Sleep(10*time.Second + expiryLag)
	s.requireTrue(time.Now(), 0, pub)
	s.requireAbsentOnlyByAStaleLeader(pub)
}

func TestSlowASingleEtcdFrozenForLongerThanTheDefaultTTLHasTheKeyBackAtOnce(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartProcess(t)
	s := newScene(t, etcd)
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7))
	for _, frozen := range []time.Duration{9 * time.Second, 11 * time.Second, 20 * time.Second} {
		etcd.Freeze()
		s.begin("frozen for %v", frozen)
		time.Sleep(frozen)
		etcd.Thaw()
		thawed := s.begin("thawed")
		s.figure("thawed", s.requireTrue(thawed, atOnce, pub))
		time.Sleep(11 * time.Second)
		s.requireTrue(time.Now(), 0, pub)
		if absent, _ := s.absence(pub, thawed); absent > 0 {
			s.figure("absent", absent)
			require.LessOrEqual(t, absent, atOnce)
		}
	}
}

func TestSlowTwoInstancesOfOneIDDoNotFight(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	s := newScene(t, etcd)
	c := etcd.Client(t)
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7))
	key := pub.key()
	s.History(key) // the observer knows of the first put
	since := s.begin("the other takes the key, and goes, once a second")
	for range 75 {
		other, err := c.Grant(t.Context(), 60)
		require.NoError(t, err)
		_, err = c.Put(t.Context(), key, "b:2", clientv3.WithLease(other.ID))
		require.NoError(t, err)
		time.Sleep(500 * time.Millisecond)
		_, err = c.Revoke(t.Context(), other.ID)
		require.NoError(t, err)
		time.Sleep(500 * time.Millisecond)
	}
	var ours []time.Time
	for _, change := range s.History(key) {
		if change.Value == "a:1" && !change.Gone && change.Time.After(since) {
			ours = append(ours, change.Time)
		}
	}
	// A key that is free is taken at once, then after 1 s, 2 s, 4 s and 8 s, and every 10 s from then on.
	require.GreaterOrEqual(t, len(ours), 8, "it is left alone for too long: %v", ours)
	for i := 1; i < len(ours); i++ {
		least := min(time.Second<<(i-1), 10*time.Second)
		require.Greater(t, ours[i].Sub(ours[i-1]), least-100*time.Millisecond, "a fight: %v", ours)
		require.Less(t, ours[i].Sub(ours[i-1]), least+2*time.Second, "it is left alone for too long: %v", ours)
	}
	s.requireTrue(time.Now(), 11*time.Second, pub)
}
