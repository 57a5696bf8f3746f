package discov_test

import (
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// etcd restarts, is wiped, or is restored, with a revision that went back or that was bumped as etcd's guide advises:
// however old what it brings back is, it goes, and nothing is asked for what is not there.

func TestAKillWhilePausingOrResumingEndsInWhatWasAskedForLast(t *testing.T) {
	t.Parallel()
	s := onProcess(t, etcdtest.QuickTicks())
	pub := s.publish("a:1", discov.WithId(7), discov.WithTTL(shortTTL), discov.WithTimeout(time.Second))
	for round := range 6 {
		pausing := round%2 == 0
		var calls sync.WaitGroup
		calls.Go(func() {
			if pausing {
				pub.Pause()
			} else {
				pub.Resume()
			}
		})
		time.Sleep(time.Duration(round/2) * time.Millisecond)
		s.process.Kill()
		calls.Wait()
		s.process.Start()
		back := s.begin("started, pausing: %v", pausing)
		if pausing {
			s.requireGone(back, atOnce)
			pub.requireState(discov.StatePaused)
		} else {
			s.requireTrue(back, atOnce, pub)
		}
	}
}

func TestAWipedEtcdGetsTheKeyAtOnceAndAgainWhenItIsDeletedThere(t *testing.T) {
	t.Parallel()
	for name, id := range map[string][]discov.PubOption{"with an id": {discov.WithId(7)}, "with the lease ID": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := onProcess(t)
			s.raiseRevision(300)
			pub := s.publish("a:1", append(id, discov.WithTTL(10*time.Second))...)
			for range 2 {
				s.process.Wipe()
				wiped := s.begin("wiped")
				s.figure("wiped", s.requireTrue(wiped, atOnce, pub))
				for range 2 {
					s.remove(pub)
					removed := s.begin("deleted, at a revision below the old")
					s.figure("deleted in the new one", s.requireTrue(removed, atOnce, pub))
				}
			}
		})
	}
}

func TestManyKeysAreBackAtOnceAfterEachOfManyWipes(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.QuickTicks())
	var paths []*etcdtest.Path
	for range 10 {
		paths = append(paths, etcdtest.NewPath(t, etcd.Endpoints()[0]))
	}
	s := newScene(t, etcd)
	var pubs []*instance
	for i, path := range paths {
		pubs = append(pubs, s.publishAt([]string{path.Endpoint()}, "a:"+strconv.Itoa(i)))
	}
	for range 5 {
		s.raiseRevision(50)
		etcd.Wipe()
		s.figure("ten keys on ten connections, wiped", s.requireTrue(s.begin("wiped"), atOnce, pubs...))
	}
}

func TestAWipeInAPauseChangesNothing(t *testing.T) {
	t.Parallel()
	s := onServer(t)
	s.raiseRevision(100)
	pub := s.publish("a:1", withID(shortTTL)...)
	require.NoError(t, pub.PauseContext(t.Context()))
	s.server.Restart()
	s.server.Wipe()
	wiped := s.begin("wiped")
	time.Sleep(atOnce)
	s.requireGone(wiped, 2*atOnce)
	require.Equal(t, discov.StatePaused, pub.Status().State)
	require.NoError(t, pub.resumeIn(atOnce))
	s.requireTrue(time.Now(), 0, pub)
	s.remove(pub)
	s.requireTrue(s.begin("deleted"), atOnce, pub)
}

func TestARestoreWithTheKeyAndItsLeaseInItChangesNothing(t *testing.T) {
	t.Parallel()
	s := onServer(t)
	pub := s.publish("a:1", withID(shortTTL)...)
	s.server.Snapshot()
	s.requireTrue(time.Now(), atOnce, pub)
	s.raiseRevision(100)
	s.server.Restore()
	s.figure("restored, with the key", s.requireTrue(s.begin("restored"), atOnce, pub))
	s.remove(pub)
	s.figure("deleted after that", s.requireTrue(s.begin("deleted, at a revision below the old"), atOnce, pub))
	time.Sleep(shortTTL + expiryLag)
	s.requireTrue(time.Now(), 0, pub)
	s.requireOneLease(pub)
}

func TestARestoreWithoutTheKeyIsRegisteredAgainAtOnce(t *testing.T) {
	t.Parallel()
	s := onServer(t)
	s.server.Snapshot()
	pub := s.publish("a:1", withID(10*time.Second)...)
	s.raiseRevision(100)
	for range 2 {
		s.server.Restore()
		s.figure("restored, without the key", s.requireTrue(s.begin("restored"), atOnce, pub))
		s.remove(pub)
		s.figure("deleted after that", s.requireTrue(s.begin("deleted, at a revision below the old"), atOnce, pub))
	}
}

func TestARestoreWithAnOlderValueGetsTheLatestAtOnce(t *testing.T) {
	t.Parallel()
	s := onServer(t)
	pub := s.publish("a:1", withID(10*time.Second)...)
	s.server.Snapshot()
	require.NoError(t, pub.Update(t.Context(), "a:2"))
	s.server.Restore()
	s.figure("restored, with an older value", s.requireTrue(s.begin("restored"), atOnce, pub))
}

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
			s := onServer(t)
			register := func(value string, opts ...discov.PubOption) *instance {
				return s.publish(value, opts...)
			}
			unchanged, unchangedID := register("unchanged"), register("unchanged", discov.WithId(1))
			changed, changedID := register("changed"), register("changed", discov.WithId(2))
			paused, pausedID := register("paused"), register("paused", discov.WithId(3))
			s.server.Snapshot()
			published := []*instance{unchanged, unchangedID, changed, changedID}
			s.requireTrue(time.Now(), atOnce, append(published, paused, pausedID)...)
			for range 2 { // so that what the snapshot has is not the last one that was
				for _, pub := range []*instance{changed, changedID} {
					before := pub.Status().Lease
					s.revoke(before)
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
			s.raiseRevision(100)
			for range 2 {
				restore(s.server)
				s.figure("restored", s.requireTrue(s.begin("restored"), atOnce, published...))
				paused.requireState(discov.StatePaused)
				pausedID.requireState(discov.StatePaused)
				s.server.Compact(t)
			}
			for _, pub := range published {
				s.remove(pub)
				s.requireTrue(s.begin("deleted"), atOnce, published...)
			}
			for _, pub := range []*instance{paused, pausedID} {
				require.NoError(t, pub.ResumeContext(t.Context()))
			}
			s.requireTrue(time.Now(), 0, s.instances...)
		})
	}
}

func TestARestoreBringsNothingBackHoweverOftenItWasPausedSince(t *testing.T) {
	t.Parallel()
	const pauses = 20 // more than anybody would want to remember
	for how, restore := range restores {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			s := onServer(t)
			var published, paused []*instance
			for _, opts := range [][]discov.PubOption{nil, {discov.WithId(1)}} {
				published = append(published, s.publish("published", opts...))
			}
			for _, opts := range [][]discov.PubOption{nil, {discov.WithId(2)}} {
				paused = append(paused, s.publish("paused", opts...))
			}
			s.server.Snapshot()
			s.requireTrue(time.Now(), atOnce, append(published, paused...)...)
			for _, pub := range append(published, paused...) {
				pauseAndResume(t, pub, pauses)
			}
			for _, pub := range paused {
				require.NoError(t, pub.PauseContext(t.Context()))
			}
			restore(s.server)
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
	s := onServer(t)
	var published, paused []*instance
	for i := range n {
		var opts []discov.PubOption
		if i%4 < 2 {
			opts = []discov.PubOption{discov.WithId(int64(i + 1))}
		}
		pub := s.publish(fmt.Sprintf("a:%d", i), opts...)
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
		before := s.server.Requests()
		s.server.Wipe()
		s.figure("wiped", s.requireTrue(s.begin("wiped"), 2*atOnce, published...)) // a hundred at once, on any machine
		time.Sleep(5 * time.Second)                                                // what could not be revoked is tried again after 3 s
		asked := grown(before, s.server.Requests())
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
