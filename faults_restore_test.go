package discov_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// etcd is restored, with a revision that went back or that was bumped as etcd's guide advises, or wiped: however old what
// it brings back is, it goes, and nothing is asked for what is not there.

// restores are the two ways in which an operator puts a snapshot back.
var restores = map[string]func(*etcdtest.Server){
	"as it was":                      (*etcdtest.Server).Restore,
	"bumped and marked as compacted": func(etcd *etcdtest.Server) { etcd.RestoreBumped(1_000_000) },
}

// pauseAndResume does both, n times.
func pauseAndResume(t *testing.T, pub *instance, n int) {
	t.Helper()
	for range n {
		require.NoError(t, pub.PauseContext(t.Context()))
		require.NoError(t, pub.ResumeContext(t.Context()))
	}
}

func TestARestoreBringsNoKeyBackThatIsNotWanted(t *testing.T) {
	t.Parallel()
	for how, restore := range restores {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			etcd := etcdtest.Start(t)
			s := newScene(t, etcd)
			register := func(value string, opts ...discov.PubOption) *instance {
				return s.publish(etcd.Endpoints(), value, opts...)
			}
			unchanged, unchangedID := register("unchanged"), register("unchanged", discov.WithId(1))
			changed, changedID := register("changed"), register("changed", discov.WithId(2))
			paused, pausedID := register("paused"), register("paused", discov.WithId(3))
			etcd.Snapshot()
			published := []*instance{unchanged, unchangedID, changed, changedID}
			s.requireTrue(time.Now(), atOnce, append(published, paused, pausedID)...)
			for range 2 { // so that what the snapshot has is not the last one that was
				for _, pub := range []*instance{changed, changedID} {
					before := pub.Status().Lease
					revoke(t, etcd, before)
					etcdtest.RequireSoon(t, atOnce, func() bool {
						now := pub.Status()
						return now.Lease != before && now.State == discov.StatePublished
					}, "another lease:\n%s", pub)
				}
			}
			for _, pub := range []*instance{paused, pausedID} {
				pauseAndResume(t, pub, 1)
				require.NoError(t, pub.PauseContext(t.Context()))
			}
			s.requireTrue(time.Now(), 0, published...)
			for range 2 {
				restore(etcd)
				s.figure("restored", s.requireTrue(s.begin("restored"), atOnce, published...))
				paused.requireState(discov.StatePaused)
				pausedID.requireState(discov.StatePaused)
				etcd.Compact(t)
			}
			for _, pub := range published {
				remove(t, etcd, pub.key())
				s.requireTrue(s.begin("deleted"), atOnce, published...)
			}
		})
	}
}

func TestARestoreBringsNothingBackHoweverOftenItWasPausedSince(t *testing.T) {
	t.Parallel()
	const pauses = 20 // more than anybody would want to remember
	for how, restore := range restores {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			etcd := etcdtest.Start(t)
			s := newScene(t, etcd)
			var published, paused []*instance
			for _, opts := range [][]discov.PubOption{nil, {discov.WithId(1)}} {
				published = append(published, s.publish(etcd.Endpoints(), "published", opts...))
			}
			for _, opts := range [][]discov.PubOption{nil, {discov.WithId(2)}} {
				paused = append(paused, s.publish(etcd.Endpoints(), "paused", opts...))
			}
			etcd.Snapshot()
			s.requireTrue(time.Now(), atOnce, append(published, paused...)...)
			for _, pub := range append(published, paused...) {
				pauseAndResume(t, pub, pauses)
			}
			for _, pub := range paused {
				require.NoError(t, pub.PauseContext(t.Context()))
			}
			restore(etcd)
			s.figure("restored", s.requireTrue(s.begin("restored"), atOnce, published...))
			for _, pub := range paused {
				pub.requireState(discov.StatePaused)
			}
		})
	}
}

func TestAWipeCostsNoRevokeOfWhatIsNotThere(t *testing.T) {
	t.Parallel()
	const n = 100
	etcd := etcdtest.Start(t)
	s := newScene(t, etcd)
	var published, paused []*instance
	for i := range n {
		var opts []discov.PubOption
		if i%4 < 2 {
			opts = []discov.PubOption{discov.WithId(int64(i + 1))}
		}
		pub := s.publish(etcd.Endpoints(), fmt.Sprintf("a:%d", i), opts...)
		pauseAndResume(t, pub, 2)
		if i%2 == 0 {
			published = append(published, pub)
			continue
		}
		require.NoError(t, pub.PauseContext(t.Context()))
		paused = append(paused, pub)
	}
	s.requireTrue(time.Now(), atOnce, published...)
	for range 2 {
		before := etcd.Requests()
		etcd.Wipe()
		s.figure("wiped", s.requireTrue(s.begin("wiped"), 2*atOnce, published...)) // a hundred at once, on any machine
		time.Sleep(5 * time.Second)                                                // what could not be revoked is tried again after 3 s
		asked := grown(before, etcd.Requests())
		t.Logf("FIGURE | %s | asked in 5 s after a wipe of %d published and %d paused | %v", t.Name(), len(published), len(paused), asked)
		assert.LessOrEqual(t, asked["LeaseRevoke"], 5, "revokes of leases that are not there")
		// Each looks once for leases of its own. A published one reads its key before, and finds out by a write that its
		// lease is gone.
		assert.LessOrEqual(t, asked["Range"], 2*len(published)+len(paused)+n/10, "reads")
		assert.LessOrEqual(t, asked["Txn"], 2*len(published)+n/10, "writes")
		assert.LessOrEqual(t, asked["LeaseGrant"], len(published)+n/10, "grants")
		s.requireTrue(time.Now(), 0, published...)
		for _, pub := range paused {
			require.Equal(t, discov.StatePaused, pub.Status().State)
		}
	}
}
