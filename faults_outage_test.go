package discov_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
)

// 1. etcd restarts.

func TestARestartNeverTakesTheKeyAway(t *testing.T) {
	t.Parallel()
	for name, id := range map[string][]discov.PubOption{
		"with an id":        {discov.WithId(7)},
		"with the lease ID": nil,
		"with an exact key": {discov.WithExactKey()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := etcdtest.StartProcess(t)
			s := newScene(t, etcd)
			pub := s.publish(etcd.Endpoints(), "a:1", append(id, discov.WithTTL(shortTTL))...)
			for _, down := range []time.Duration{0, shortTTL / 2, 2 * shortTTL} {
				etcd.Kill()
				s.begin("killed for %v", down)
				time.Sleep(down)
				etcd.Start()
				back := s.begin("started")
				s.figure(fmt.Sprintf("restart after %v", down), s.requireTrue(back, atOnce, pub))
			}
			time.Sleep(shortTTL + expiryLag)
			s.requireNeverAbsent(pub)
			s.requireOneLease(pub)
		})
	}
}

func TestQuickRestartsInARowNeverTakeTheKeyAway(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartProcess(t, etcdtest.QuickTicks())
	s := newScene(t, etcd)
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7), discov.WithTTL(shortTTL))
	var back time.Time
	for i := range 8 {
		if i%2 == 0 {
			etcd.Kill()
		} else {
			etcd.Stop()
		}
		etcd.Start()
		back = s.begin("restart %d", i)
	}
	s.figure("after eight restarts", s.requireTrue(back, atOnce, pub))
	time.Sleep(shortTTL + expiryLag)
	s.requireNeverAbsent(pub)
	s.requireOneLease(pub)
}

func TestAKillWhilePausingOrResumingEndsInWhatWasAskedForLast(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartProcess(t, etcdtest.QuickTicks())
	s := newScene(t, etcd)
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7), discov.WithTTL(shortTTL), discov.WithTimeout(time.Second))
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
		etcd.Kill()
		calls.Wait()
		etcd.Start()
		back := s.begin("started, pausing: %v", pausing)
		if pausing {
			s.requireGone(back, atOnce)
			pub.requireState(discov.StatePaused)
		} else {
			s.requireTrue(back, atOnce, pub)
		}
	}
}

// 2. The data directory is wiped.

func TestAWipedEtcdGetsTheKeyAtOnceAndAgainWhenItIsDeletedThere(t *testing.T) {
	t.Parallel()
	for name, id := range map[string][]discov.PubOption{"with an id": {discov.WithId(7)}, "with the lease ID": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := etcdtest.StartProcess(t)
			s := newScene(t, etcd)
			raiseRevision(t, etcd, 300)
			pub := s.publish(etcd.Endpoints(), "a:1", append(id, discov.WithTTL(10*time.Second))...)
			for range 2 {
				etcd.Wipe()
				wiped := s.begin("wiped")
				s.figure("wiped", s.requireTrue(wiped, atOnce, pub))
				for range 2 {
					remove(t, etcd, pub.key())
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
		pubs = append(pubs, s.publish([]string{path.Endpoint()}, "a:"+strconv.Itoa(i)))
	}
	for range 5 {
		raiseRevision(t, etcd, 50)
		etcd.Wipe()
		s.figure("ten keys on ten connections, wiped", s.requireTrue(s.begin("wiped"), atOnce, pubs...))
	}
}

func TestAWipeInAPauseChangesNothing(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	s := newScene(t, etcd)
	raiseRevision(t, etcd, 100)
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7), discov.WithTTL(shortTTL))
	require.NoError(t, pub.PauseContext(t.Context()))
	etcd.Wipe()
	wiped := s.begin("wiped")
	time.Sleep(atOnce)
	s.requireGone(wiped, 2*atOnce)
	require.NoError(t, s.bounded(atOnce, func() error { return pub.ResumeContext(t.Context()) }))
	s.requireTrue(time.Now(), 0, pub)
	remove(t, etcd, pub.key())
	s.requireTrue(s.begin("deleted"), atOnce, pub)
}

// 3. etcd is restored to an older state.

func TestARestoreWithTheKeyAndItsLeaseInItChangesNothing(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	s := newScene(t, etcd)
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7), discov.WithTTL(shortTTL))
	etcd.Snapshot()
	s.requireTrue(time.Now(), atOnce, pub)
	raiseRevision(t, etcd, 100)
	etcd.Restore()
	s.figure("restored, with the key", s.requireTrue(s.begin("restored"), atOnce, pub))
	remove(t, etcd, pub.key())
	s.figure("deleted after that", s.requireTrue(s.begin("deleted, at a revision below the old"), atOnce, pub))
	time.Sleep(shortTTL + expiryLag)
	s.requireTrue(time.Now(), 0, pub)
	s.requireOneLease(pub)
}

func TestARestoreWithoutTheKeyIsRegisteredAgainAtOnce(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	s := newScene(t, etcd)
	etcd.Snapshot()
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7), discov.WithTTL(10*time.Second))
	raiseRevision(t, etcd, 100)
	for range 2 {
		etcd.Restore()
		s.figure("restored, without the key", s.requireTrue(s.begin("restored"), atOnce, pub))
		remove(t, etcd, pub.key())
		s.figure("deleted after that", s.requireTrue(s.begin("deleted, at a revision below the old"), atOnce, pub))
	}
}

func TestARestoreWithAnOlderLeaseOfOursIsMendedAtOnceAndTheOlderLeaseGoes(t *testing.T) {
	t.Parallel()
	losses := map[string]func(*scene, *instance){
		"revoked by an operator": func(s *scene, pub *instance) { revoke(s.t, s.etcd, pub.Status().Lease) },
		"revoked by a Pause": func(s *scene, pub *instance) {
			require.NoError(s.t, pub.PauseContext(s.t.Context()))
			require.NoError(s.t, pub.ResumeContext(s.t.Context()))
		},
	}
	for name, id := range map[string][]discov.PubOption{"with an id": {discov.WithId(7)}, "with the lease ID": nil} {
		for how, lose := range losses {
			t.Run(name+", "+how, func(t *testing.T) {
				t.Parallel()
				etcd := etcdtest.Start(t)
				s := newScene(t, etcd)
				pub := s.publish(etcd.Endpoints(), "a:1", append(id, discov.WithTTL(10*time.Second))...)
				etcd.Snapshot()
				s.requireTrue(time.Now(), atOnce, pub)
				lose(s, pub)
				s.requireTrue(s.begin("revoked"), atOnce, pub)
				raiseRevision(t, etcd, 100)
				etcd.Restore()
				s.figure("restored, with an older lease", s.requireTrue(s.begin("restored"), atOnce, pub))
			})
		}
	}
}

func TestAPausedPublisherStaysWithdrawnWhenItsKeyIsRestored(t *testing.T) {
	t.Parallel()
	for name, id := range map[string][]discov.PubOption{"with an id": {discov.WithId(7)}, "with the lease ID": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := etcdtest.Start(t)
			s := newScene(t, etcd)
			pub := s.publish(etcd.Endpoints(), "a:1", append(id, discov.WithTTL(10*time.Second))...)
			etcd.Snapshot()
			s.requireTrue(time.Now(), atOnce, pub)
			for range 2 {
				require.NoError(t, pub.PauseContext(t.Context()))
				etcd.Restore()
				s.figure("restored while paused", s.requireGone(s.begin("restored"), atOnce))
				pub.requireState(discov.StatePaused)
				require.NoError(t, pub.ResumeContext(t.Context()))
				s.requireTrue(time.Now(), 0, pub)
			}
		})
	}
}

func TestARestoreWithAnOlderValueGetsTheLatestAtOnce(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	s := newScene(t, etcd)
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7), discov.WithTTL(10*time.Second))
	etcd.Snapshot()
	require.NoError(t, pub.Update(t.Context(), "a:2"))
	etcd.Restore()
	s.figure("restored, with an older value", s.requireTrue(s.begin("restored"), atOnce, pub))
}

// 4. The lease is revoked, the key deleted.

func TestARevokedLeaseOrADeletedKeyIsBackWithin100ms(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	s := newScene(t, etcd)
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7))
	for name, fault := range map[string]func(){
		"revoked": func() { revoke(t, etcd, pub.Status().Lease) },
		"deleted": func() { remove(t, etcd, pub.key()) },
	} {
		var absences []time.Duration
		for range 4 { // ten doubts in less than a second each would be answered with pauses
			since := s.begin("%s", name)
			fault()
			s.requireTrue(since, atOnce, pub)
			absent, _ := s.absence(pub, since)
			absences = append(absences, absent)
			time.Sleep(100 * time.Millisecond)
		}
		s.requireMostly(100*time.Millisecond, name, absences)
	}
}

func TestAKeyWithTheLeaseIDIsBackWithin100msOfARevokeUnderANewOne(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	s := newScene(t, etcd)
	pub := s.publish(etcd.Endpoints(), "a:1")
	var took []time.Duration
	for range 5 {
		old := pub.key()
		revoked := s.begin("revoked")
		revoke(t, etcd, pub.Status().Lease)
		took = append(took, s.requireTrue(revoked, atOnce, pub))
		require.NotEqual(t, old, pub.key())
	}
	s.requireMostly(100*time.Millisecond, "revoked, without an id", took)
}

func TestAKeyDeletedBetweenPutAndWatchIsBackWithin100ms(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	s := newScene(t, etcd)
	c := etcd.Client(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	puts := c.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithFilterDelete())
	deleted := make(chan struct{})
	go func() {
		defer close(deleted)
		for range 5 {
			response, ok := <-puts
			if !ok {
				return
			}
			for _, event := range response.Events {
				_, _ = c.Delete(ctx, string(event.Kv.Key))
			}
		}
	}()
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7))
	<-deleted
	last := s.begin("deleted five times")
	s.requireTrue(last, atOnce, pub)
	var took []time.Duration
	for _, a := range s.Absences(pub.key()) {
		took = append(took, a.Duration())
	}
	require.Len(t, took, 5)
	s.requireMostly(100*time.Millisecond, "deleted as soon as it was put", took)
}

func TestAKeyDeletedAndCompactedBehindACutIsBackWithTheConnection(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	path := etcdtest.NewPath(t, etcd.Endpoints()[0])
	s := newScene(t, etcd)
	pub := s.publish([]string{path.Endpoint()}, "a:1", discov.WithId(7))
	var took []time.Duration
	for round := range 3 {
		path.Refuse()
		path.Reset()
		s.begin("cut")
		remove(t, etcd, pub.key())
		raiseRevision(t, etcd, 20)
		etcd.Compact(t)
		time.Sleep(time.Duration(round) * 700 * time.Millisecond)
		path.Accept()
		mended := s.begin("mended")
		etcdtest.RequireSoon(t, atOnce, func() bool { return path.Connections() > 0 }, "connect again")
		there := s.begin("connected")
		s.requireTrue(mended, atOnce, pub)
		_, back := s.absence(pub, mended)
		s.figure("deleted and compacted, since the path was mended", back.Sub(mended))
		took = append(took, back.Sub(there))
	}
	s.requireMostly(100*time.Millisecond, "deleted and compacted, since the connection", took)
}

// 5. The key is overwritten.

func TestAKeyOverwrittenByNobodyIsPutRightWithin100ms(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	s := newScene(t, etcd)
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7))
	c := etcd.Client(t)
	for name, opts := range map[string][]clientv3.OpOption{
		"without a lease":          nil,
		"with our lease and value": {clientv3.WithLease(pub.Status().Lease)},
		"with our lease":           {clientv3.WithIgnoreLease()},
	} {
		var times []time.Duration
		for range 4 {
			value := "b:2"
			if name == "with our lease and value" {
				value = "a:1" // right: it is to be left alone
			}
			_, err := c.Put(t.Context(), pub.key(), value, opts...)
			require.NoError(t, err)
			times = append(times, s.requireTrue(s.begin("overwritten %s", name), atOnce, pub))
			time.Sleep(50 * time.Millisecond)
		}
		s.requireMostly(100*time.Millisecond, "overwritten "+name, times)
	}
	s.requireNeverAbsent(pub)
	ours := 0
	for _, change := range s.History(pub.key()) {
		if change.Value == "a:1" {
			ours++
		}
	}
	require.Equal(t, 1+4+2*4, ours, "writes of the right value: the first, four that were not ours, eight that mended")
}

func TestAKeyThatAnotherInstanceHoldsIsLeftToItUntilItGoes(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	s := newScene(t, etcd)
	c := etcd.Client(t)
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7), discov.WithTTL(shortTTL))
	key := pub.key()
	for range 2 {
		other, err := c.Grant(t.Context(), 600)
		require.NoError(t, err)
		_, err = c.Put(t.Context(), key, "b:2", clientv3.WithLease(other.ID))
		require.NoError(t, err)
		since := s.begin("taken by another")
		etcdtest.RequireSoon(t, atOnce, func() bool { return pub.Status().State == discov.StateConflict }, "conflict")
		for range 10 { // the other instance goes on writing; no write is answered
			_, err = c.Put(t.Context(), key, "b:2", clientv3.WithLease(other.ID))
			require.NoError(t, err)
			time.Sleep(300 * time.Millisecond)
		}
		require.Equal(t, discov.StateConflict, pub.Status().State)
		for _, change := range s.History(key) {
			if change.Time.After(since) {
				require.Equal(t, "b:2", change.Value, "a write of ours in the conflict")
			}
		}
		_, err = c.Revoke(t.Context(), other.ID)
		require.NoError(t, err)
		left := s.begin("the other has gone")
		s.figure("the other goes", s.requireTrue(left, atOnce, pub))
	}

	other, err := c.Grant(t.Context(), 600)
	require.NoError(t, err)
	s.others = 1
	_, err = c.Put(t.Context(), key, "b:2", clientv3.WithLease(other.ID))
	require.NoError(t, err)
	require.NoError(t, pub.StopContext(t.Context()))
	kv, ok := s.KV(t, key)
	require.True(t, ok, "Stop has taken away the other's key")
	require.Equal(t, etcdtest.KV{Value: "b:2", Lease: int64(other.ID), Created: kv.Created, Changed: kv.Changed}, kv)
	_, err = c.Revoke(t.Context(), other.ID)
	require.NoError(t, err)
	s.others = 0
}

// 6. The network path swallows everything.

func TestAPathThatSwallowsEverythingAndHealsHasTheKeyBackAtOnce(t *testing.T) {
	t.Parallel()
	const ttl = shortTTL
	// Around the TTL too: there the renewal that was under way may come too late, or just in time.
	for _, lost := range []time.Duration{ttl / 2, ttl - 200*time.Millisecond, ttl, ttl + 300*time.Millisecond, ttl + 600*time.Millisecond, 2 * ttl} {
		t.Run(lost.String(), func(t *testing.T) {
			t.Parallel()
			etcd := etcdtest.Start(t)
			path := etcdtest.NewPath(t, etcd.Endpoints()[0])
			s := newScene(t, etcd)
			pub := s.publish([]string{path.Endpoint()}, "a:1", discov.WithId(7), discov.WithTTL(ttl))
			path.Swallow()
			s.begin("swallowing")
			time.Sleep(lost)
			path.Heal()
			healed := s.begin("healed")
			s.figure("swallowed for "+lost.String(), s.requireTrue(healed, atOnce, pub))
			time.Sleep(ttl + expiryLag)
			s.requireTrue(time.Now(), 0, pub)
			if absent, back := s.absence(pub, healed); absent > 0 {
				// etcd may find the lease expired half a second after the heal.
				s.figure("swallowed for "+lost.String()+", absent after the heal", back.Sub(healed))
				require.LessOrEqual(t, min(absent, back.Sub(healed)), atOnce+s.meter.allowance(healed, back), "absent again after the heal\n%s", pub)
			}
		})
	}
}

func TestAPathThatLosesBytesForGoodAndHealsHasTheKeyBackAtOnce(t *testing.T) {
	t.Parallel()
	for _, lost := range []time.Duration{shortTTL / 2, 2 * shortTTL} {
		t.Run(lost.String(), func(t *testing.T) {
			t.Parallel()
			etcd := etcdtest.Start(t)
			path := etcdtest.NewPath(t, etcd.Endpoints()[0])
			s := newScene(t, etcd)
			pub := s.publish([]string{path.Endpoint()}, "a:1", discov.WithId(7), discov.WithTTL(shortTTL))
			path.DeafenCurrent()
			path.Swallow()
			s.begin("losing")
			time.Sleep(lost)
			path.DeafenCurrent() // those that were opened meanwhile have lost what they sent, too
			path.Heal()
			s.figure("lost for "+lost.String(), s.requireTrue(s.begin("healed"), atOnce, pub))
			time.Sleep(shortTTL + expiryLag)
			s.requireTrue(time.Now(), 0, pub)
		})
	}
}

func TestOutagesOfAnyLengthEndWithinASecond(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]struct{ begin, end func(*etcdtest.Path) }{
		"cut off":   {func(p *etcdtest.Path) { p.Refuse(); p.Reset() }, func(p *etcdtest.Path) { p.Accept() }},
		"swallowed": {(*etcdtest.Path).Swallow, (*etcdtest.Path).Heal},
		"lost": {
			func(p *etcdtest.Path) { p.DeafenCurrent(); p.Swallow() },
			func(p *etcdtest.Path) { p.DeafenCurrent(); p.Heal() },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := etcdtest.Start(t)
			const outages = 16 // each on a path of its own, so that they end at every moment of the way back
			var paths []*etcdtest.Path
			for range outages {
				paths = append(paths, etcdtest.NewPath(t, etcd.Endpoints()[0]))
			}
			s := newScene(t, etcd)
			var pubs []*instance
			for i, path := range paths {
				pubs = append(pubs, s.publish([]string{path.Endpoint()}, "a:1", discov.WithId(int64(i+1)), discov.WithTTL(shortTTL)))
			}
			healed := make([]time.Time, outages)
			var all sync.WaitGroup
			for i, path := range paths {
				all.Go(func() {
					fault.begin(path)
					time.Sleep(shortTTL + 2*expiryLag + time.Duration(i)*4*time.Second/outages)
					fault.end(path)
					healed[i] = time.Now()
				})
			}
			all.Wait()
			s.requireTrue(time.Now(), 4*atOnce, pubs...)
			var took []time.Duration
			for i, pub := range pubs {
				_, back := s.absence(pub, healed[i])
				took = append(took, back.Sub(healed[i]))
				assert.LessOrEqual(t, back.Sub(healed[i]), atOnce+s.meter.allowance(healed[i], back))
			}
			s.requireMostly(atOnce, name, took)
		})
	}
}

func TestAPathThatClosesWhatItAcceptsHasTheKeyBackAtOnce(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	path := etcdtest.NewPath(t, etcd.Endpoints()[0])
	s := newScene(t, etcd)
	pub := s.publish([]string{path.Endpoint()}, "a:1", discov.WithId(7), discov.WithTTL(shortTTL))
	path.Refuse()
	path.Reset()
	accepted := closeAtOnce(t, path.Endpoint(), 2*shortTTL)
	path.Accept()
	s.figure("closed at once", s.requireTrue(s.begin("mended"), atOnce, pub))
	t.Logf("%d connections in %v", accepted, 2*shortTTL)
	require.LessOrEqual(t, accepted, int(2*shortTTL/(100*time.Millisecond)), "polite")
}

// closeAtOnce accepts connections at the address for d, and closes each. It returns how many.
func closeAtOnce(t *testing.T, address string, d time.Duration) (accepted int) {
	t.Helper()
	listener, err := net.Listen("tcp4", address)
	require.NoError(t, err)
	closed := make(chan struct{})
	time.AfterFunc(d, func() {
		listener.Close()
		close(closed)
	})
	for {
		conn, err := listener.Accept()
		if err != nil {
			<-closed // the address is free
			return accepted
		}
		accepted++
		conn.Close()
	}
}

func TestLatencyThatJumpsNeverTakesTheKeyAway(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	path := etcdtest.NewPath(t, etcd.Endpoints()[0])
	s := newScene(t, etcd)
	pub := s.publish([]string{path.Endpoint()}, "a:1", discov.WithId(7), discov.WithTTL(6*time.Second))
	for _, latency := range []time.Duration{300 * time.Millisecond, 0, 800 * time.Millisecond, 10 * time.Millisecond, 500 * time.Millisecond, 0} {
		path.Latency(latency)
		s.begin("latency of %v each way", latency)
		time.Sleep(3 * time.Second)
	}
	s.requireTrue(time.Now(), atOnce, pub)
	s.requireNeverAbsent(pub)
	s.requireOneLease(pub)
}

// 7. Half-open connections.

func TestAConnectionThatGoesDeafNeverTakesTheKeyAway(t *testing.T) {
	t.Parallel()
	for _, ttl := range []time.Duration{4 * time.Second, 6 * time.Second, 10 * time.Second} {
		for name, after := range map[string]time.Duration{"at once": 0, "before a renewal": ttl/3 - ttl/24} {
			t.Run(fmt.Sprintf("TTL %v, %s", ttl, name), func(t *testing.T) {
				t.Parallel()
				etcd := etcdtest.Start(t)
				path := etcdtest.NewPath(t, etcd.Endpoints()[0])
				s := newScene(t, etcd)
				pub := s.publish([]string{path.Endpoint()}, "a:1", discov.WithId(7), discov.WithTTL(ttl))
				time.Sleep(after)
				path.DeafenCurrent()
				deaf := s.begin("deaf")
				time.Sleep(ttl + 2*expiryLag)
				s.requireTrue(time.Now(), 0, pub)
				s.requireNeverAbsent(pub)
				s.requireOneLease(pub)
				t.Logf("deaf since %s, %d connections", clock(deaf), path.Connections())
				require.Equal(t, 1, path.Connections(), "the deaf connection is to be closed")
			})
		}
	}
}

func TestTenPublishersOnAConnectionThatGoesDeafKeepTheirKeys(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	path := etcdtest.NewPath(t, etcd.Endpoints()[0])
	s := newScene(t, etcd)
	var pubs []*instance
	for id := range int64(10) {
		pubs = append(pubs, s.publish([]string{path.Endpoint()}, "a:"+strconv.FormatInt(id, 10), discov.WithId(id+1), discov.WithTTL(4*time.Second)))
	}
	require.Equal(t, 1, path.Connections())
	for range 2 {
		path.DeafenCurrent()
		s.begin("deaf")
		time.Sleep(6 * time.Second)
		s.requireTrue(time.Now(), 0, pubs...)
		s.requireNeverAbsent(pubs...)
		require.Equal(t, 1, path.Connections())
	}
}

func TestADeafConnectionWithAccountAndTLSNeverTakesTheKeyAway(t *testing.T) {
	t.Parallel()
	ca := etcdtest.NewCA(t)
	cert := ca.Issue(t)
	etcd := etcdtest.Start(t, etcdtest.WithServerTLS(cert), etcdtest.WithAuth("user", "pass"))
	path := etcdtest.NewPath(t, etcd.Endpoints()[0])
	s := newScene(t, etcd)
	pub := s.publish([]string{path.Endpoint()}, "a:1", discov.WithId(7), discov.WithTTL(4*time.Second),
		discov.WithPubEtcdAccount("user", "pass"), discov.WithPubEtcdTLS(cert.CertFile, cert.KeyFile, cert.CAFile, false))
	for range 2 {
		path.DeafenCurrent()
		s.begin("deaf")
		time.Sleep(6 * time.Second)
		s.requireTrue(time.Now(), 0, pub)
		s.requireNeverAbsent(pub)
		require.Equal(t, 1, path.Connections())
	}
}

func TestStallsInARowNeverTakeTheKeyAway(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	path := etcdtest.NewPath(t, etcd.Endpoints()[0])
	s := newScene(t, etcd)
	pub := s.publish([]string{path.Endpoint()}, "a:1", discov.WithId(7))
	path.DeafenCurrent()
	s.begin("deaf")
	// The first replacement goes deaf as soon as it is there, while it is being asked or shortly after.
	until := pub.Status().Until
	for path.Connections() < 2 && pub.Status().Until.Equal(until) {
		time.Sleep(100 * time.Microsecond)
	}
	path.DeafenCurrent()
	s.begin("the spare is deaf")
	time.Sleep(10*time.Second + expiryLag)
	s.requireTrue(time.Now(), 0, pub)
	s.requireNeverAbsent(pub)
	s.requireOneLease(pub)
	require.Equal(t, 1, path.Connections())
}

func TestAReplacementThatGoesDeafAsWellIsReplacedInTime(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	path := etcdtest.NewPath(t, etcd.Endpoints()[0])
	s := newScene(t, etcd)
	pub := s.publish([]string{path.Endpoint()}, "a:1", discov.WithId(7), discov.WithTTL(4*time.Second))
	for range 3 {
		path.DeafenCurrent()
		s.begin("deaf")
		until := pub.Status().Until
		etcdtest.RequireSoon(t, 4*time.Second, func() bool { return pub.Status().Until.After(until) }, "a renewal over another connection")
	}
	time.Sleep(5 * time.Second)
	s.requireTrue(time.Now(), 0, pub)
	s.requireNeverAbsent(pub)
}

func TestAConnectionThatGoesDeafWithNothingUnderWayIsNoticedByAWithdrawal(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	path := etcdtest.NewPath(t, etcd.Endpoints()[0])
	s := newScene(t, etcd)
	pub := s.publish([]string{path.Endpoint()}, "a:1", discov.WithId(7), discov.WithTTL(10*time.Second))
	path.DeafenCurrent()
	require.NoError(t, s.bounded(5*time.Second, func() error { return pub.PauseContext(t.Context()) }))
	s.requireGone(time.Now(), 0)
	path.DeafenCurrent()
	require.NoError(t, s.bounded(5*time.Second, func() error { return pub.ResumeContext(t.Context()) }))
	s.requireTrue(time.Now(), 0, pub)
	path.DeafenCurrent()
	require.NoError(t, s.bounded(5*time.Second, func() error { return pub.Update(t.Context(), "a:2") }))
	s.requireTrue(time.Now(), 0, pub)
	path.DeafenCurrent()
	require.NoError(t, s.bounded(5*time.Second, func() error { return pub.StopContext(t.Context()) }))
	s.requireGone(time.Now(), 0)
}

// 8. Three members, one frozen.

func TestAFrozenMemberNeverTakesTheKeyAway(t *testing.T) {
	t.Parallel()
	requireKeptWhileEachIsFrozen(t, etcdtest.StartProcessCluster(t, 3))
}

func TestAFrozenMemberNeverTakesTheKeyOfAnAccountAway(t *testing.T) {
	t.Parallel()
	requireKeptWhileEachIsFrozen(t, etcdtest.StartProcessCluster(t, 3, etcdtest.WithAuth("svc", "pass")), discov.WithPubEtcdAccount("svc", "pass"))
}

// TestAFrozenMemberNeverTakesTheKeyAwayWhereNoConnectionCanBeMade: those to the others are all there is.
func TestAFrozenMemberNeverTakesTheKeyAwayWhereNoConnectionCanBeMade(t *testing.T) {
	t.Parallel()
	const ttl = 5 * time.Second
	etcd := etcdtest.StartProcessCluster(t, 3)
	var paths []*etcdtest.Path
	var endpoints []string
	for _, endpoint := range etcd.Endpoints() {
		path := etcdtest.NewPath(t, endpoint)
		paths, endpoints = append(paths, path), append(endpoints, path.Endpoint())
	}
	s := newScene(t, etcd)
	pub := s.publish(endpoints, "a:1", discov.WithId(7), discov.WithTTL(ttl))
	for _, path := range paths {
		etcdtest.RequireSoon(t, 10*time.Second, func() bool { return path.Connections() > 0 }, "a member is not connected to")
		path.Refuse()
	}
	for _, member := range etcd.Followers() {
		s.requireKeptWhileFrozen(pub, member, ttl)
	}
	s.requireNeverAbsent(pub)
}

func requireKeptWhileEachIsFrozen(t *testing.T, etcd *etcdtest.ProcessCluster, opts ...discov.PubOption) {
	t.Helper()
	const ttl = 5 * time.Second
	s := newScene(t, etcd)
	pub := s.publish(etcd.Endpoints(), "a:1", append(opts, discov.WithId(7), discov.WithTTL(ttl))...)
	leader := etcd.Leader()
	for _, member := range append(etcd.Followers(), leader) {
		s.t.Logf("the leader: %v", member == leader)
		s.requireKeptWhileFrozen(pub, member, ttl)
	}
	time.Sleep(ttl)
	s.requireTrue(time.Now(), 0, pub)
	s.requireAbsentOnlyByAStaleLeader(pub)
}

// requireKeptWhileFrozen freezes a member for longer than a lease lives that nobody renews, its end being found late.
func (s *scene) requireKeptWhileFrozen(pub *instance, member *etcdtest.Process, ttl time.Duration) {
	s.t.Helper()
	member.Freeze()
	s.begin("frozen")
	time.Sleep(ttl + 2*time.Second)
	s.requireNeverAbsent(pub)
	member.Thaw()
	s.figure("a member thawed", s.requireTrue(s.begin("thawed"), atOnce, pub))
}

// requireAbsentOnlyByAStaleLeader allows for one fault of etcd's own: a leader that was frozen for longer than the TTL may
// take itself for the leader when it goes on, find the lease expired by its own clock and have it revoked
// (EtcdServer.ensureLeadership asks nobody while isActive, and a tick is enough for that; see etcd-io/etcd#15247). Seen in
// one of six runs. No client can prevent it. What is asked for then may be lost, since raft drops what was proposed to a
// leader that steps down, and is asked for again after a second; the key has to be back at once after that.
func (s *scene) requireAbsentOnlyByAStaleLeader(pub *instance) {
	s.t.Helper()
	for _, a := range s.Absences(pub.key()) {
		s.figure("revoked by the leader that was frozen, absent", a.Duration())
		require.LessOrEqual(s.t, a.Duration(), time.Second+atOnce+s.meter.allowance(a.From, a.To), "%s", pub)
	}
	require.LessOrEqual(s.t, len(s.Absences(pub.key())), 1)
}

func TestASingleEtcdFrozenForLessThanTheTTLNeverTakesTheKeyAway(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartProcess(t)
	s := newScene(t, etcd)
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7))
	for range 2 {
		etcd.Freeze()
		s.begin("frozen")
		time.Sleep(6 * time.Second)
		etcd.Thaw()
		s.figure("thawed within the TTL", s.requireTrue(s.begin("thawed"), atOnce, pub))
	}
	s.requireNeverAbsent(pub)
	s.requireOneLease(pub)
}

func TestASingleEtcdFrozenForLongerThanTheTTLHasTheKeyBackAtOnce(t *testing.T) {
	t.Parallel()
	for _, frozen := range []time.Duration{shortTTL, shortTTL + 500*time.Millisecond, 2 * shortTTL} {
		t.Run(frozen.String(), func(t *testing.T) {
			t.Parallel()
			etcd := etcdtest.StartProcess(t)
			s := newScene(t, etcd)
			pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7), discov.WithTTL(shortTTL))
			etcd.Freeze()
			s.begin("frozen")
			time.Sleep(frozen)
			etcd.Thaw()
			thawed := s.begin("thawed")
			s.figure("thawed after "+frozen.String(), s.requireTrue(thawed, atOnce, pub))
			// A lease of a frozen server may be found expired half a second after the thaw.
			time.Sleep(shortTTL + expiryLag)
			s.requireTrue(time.Now(), 0, pub)
			if absent, _ := s.absence(pub, thawed); absent > 0 {
				s.figure("absent", absent)
				require.LessOrEqual(t, absent, atOnce)
			}
		})
	}
}

// TestAnEtcdThatHangsIsNotAskedAgainAndAgain: what was sent to it is answered when it goes on, so once is enough.
func TestAnEtcdThatHangsIsNotAskedAgainAndAgain(t *testing.T) {
	t.Parallel()
	const hang = 11 * time.Second // gRPC gives the connection up after 13 s: then nothing could be asked
	etcd := etcdtest.StartProcess(t)
	s := newScene(t, etcd)
	var sent sentRenewals
	counted := discov.WithClientConfig(func(c *clientv3.Config) { c.DialOptions = append(c.DialOptions, grpc.WithStatsHandler(&sent)) })
	var pubs []*instance
	for id := range int64(10) {
		pubs = append(pubs, s.publish(etcd.Endpoints(), "a:1", discov.WithId(id+1), discov.WithTTL(shortTTL), counted))
	}
	etcd.Freeze()
	s.begin("frozen")
	before := sent.Load()
	time.Sleep(hang)
	during := sent.Load() - before
	etcd.Thaw()
	s.figure("thawed after "+hang.String(), s.requireTrue(s.begin("thawed"), atOnce, pubs...))
	require.LessOrEqual(t, during, int64(3*len(pubs)), "renewals asked for in vain")
}

// sentRenewals counts the renewals that clients ask for.
type sentRenewals struct{ atomic.Int64 }

func (s *sentRenewals) HandleRPC(_ context.Context, one stats.RPCStats) {
	if out, ok := one.(*stats.OutPayload); ok {
		if _, ok := out.Payload.(*pb.LeaseKeepAliveRequest); ok {
			s.Add(1)
		}
	}
}

func (*sentRenewals) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (*sentRenewals) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (*sentRenewals) HandleConn(context.Context, stats.ConnStats)                       {}

func TestAStarvedEtcdNeverLosesTheKey(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartProcess(t)
	s := newScene(t, etcd)
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7))
	for began := s.begin("starved"); time.Since(began) < 20*time.Second; {
		etcd.Freeze()
		time.Sleep(900 * time.Millisecond)
		etcd.Thaw()
		time.Sleep(100 * time.Millisecond)
	}
	s.figure("no longer starved", s.requireTrue(s.begin("fed"), atOnce, pub))
	s.requireNeverAbsent(pub)
	s.requireOneLease(pub)
}

// 9. Leaders, quorum, partitions.

func TestALeaderThatIsKilledNeverTakesTheKeyAway(t *testing.T) {
	t.Parallel()
	const ttl = 4 * time.Second
	etcd := etcdtest.StartProcessCluster(t, 3)
	s := newScene(t, etcd)
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7), discov.WithTTL(ttl))
	for range 2 {
		leader := etcd.Leader()
		leader.Kill()
		s.begin("the leader is killed")
		time.Sleep(ttl + expiryLag)
		s.requireNeverAbsent(pub)
		leader.Start()
		s.requireTrue(s.begin("the leader is back"), atOnce, pub)
	}
	s.requireNeverAbsent(pub)
	s.requireOneLease(pub)
}

func TestARequestThatDiedWithTheLeaderIsMadeAgain(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartProcessCluster(t, 3, etcdtest.QuickTicks())
	s := newScene(t, etcd)
	follower := etcd.Followers()[0].Endpoints()
	pub := s.publish(follower, "a:1", discov.WithId(7), discov.WithTimeout(10*time.Second))
	etcd.Leader().Kill()
	s.begin("the leader is killed")
	err := s.bounded(3*time.Second, func() error { return pub.Update(t.Context(), "a:2") }) // not the 5 s of a request
	require.NoError(t, err)
	s.requireTrue(time.Now(), 0, pub)
	s.requireNeverAbsent(pub)
}

func TestQuorumLostForTwiceTheTTLNeverTakesTheKeyAway(t *testing.T) {
	t.Parallel()
	const ttl = 4 * time.Second
	etcd := etcdtest.StartProcessCluster(t, 3)
	s := newScene(t, etcd)
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7), discov.WithTTL(ttl))
	etcd.Members[0].Kill()
	etcd.Members[1].Kill()
	s.begin("two are killed")
	time.Sleep(2 * ttl)
	etcd.Start()
	waitForQuorum(t, etcd)
	s.figure("quorum lost, two killed", s.requireTrue(s.begin("a quorum again"), atOnce, pub))
	time.Sleep(ttl + expiryLag)
	s.requireNeverAbsent(pub)
	s.requireOneLease(pub)
}

// TestAMemberWithoutAQuorumIsAskedNowAndThen: it refuses at once, so that nothing but the pauses paces what is asked.
func TestAMemberWithoutAQuorumIsAskedNowAndThen(t *testing.T) {
	t.Parallel()
	const each, measured = 5, 5 * time.Second
	etcd := etcdtest.StartProcessCluster(t, 3, etcdtest.QuickTicks())
	s := newScene(t, etcd)
	var published, paused, registering []*instance
	for id := range int64(each) {
		published = append(published, s.publish(etcd.Endpoints(), "a:1", discov.WithId(3*id+1)))
		paused = append(paused, s.publish(etcd.Endpoints(), "a:1", discov.WithId(3*id+2)))
	}
	last := etcd.Members[2]
	etcd.Members[0].Kill()
	etcd.Members[1].Kill()
	s.begin("two of three are killed")
	for id := range int64(each) {
		pub := s.newInstance(etcd.Endpoints(), "a:1", discov.WithId(3*id+3), discov.WithBackgroundStart())
		require.NoError(t, pub.start())
		registering = append(registering, pub)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		require.Error(t, paused[id].PauseContext(ctx))
		cancel()
	}
	time.Sleep(2 * time.Second)
	before := last.Requests()
	time.Sleep(measured)
	total := 0
	for method, n := range last.Requests() {
		if n > before[method] {
			t.Logf("%s: %.1f a second", method, float64(n-before[method])/measured.Seconds())
			total += n - before[method]
		}
	}
	require.LessOrEqual(t, total, 3*each*6*int(measured/time.Second), "six requests a second from each")
	etcd.Start()
	waitForQuorum(t, etcd)
	s.figure("a quorum again", s.requireTrue(s.begin("a quorum again"), atOnce, append(published, registering...)...))
}

func TestTwoMembersFrozenForTwiceTheTTLHaveTheKeyBackAtOnce(t *testing.T) {
	t.Parallel()
	const ttl = 4 * time.Second
	etcd := etcdtest.StartProcessCluster(t, 3)
	s := newScene(t, etcd)
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7), discov.WithTTL(ttl))
	leader, followers := etcd.Leader(), etcd.Followers()
	for name, two := range map[string][]*etcdtest.Process{
		"the leader and a follower": {leader, followers[0]},
		"both followers":            followers,
	} {
		for _, member := range two {
			member.Freeze()
		}
		s.begin("frozen: %s", name)
		time.Sleep(2 * ttl)
		for _, member := range two {
			member.Thaw()
		}
		waitForQuorum(t, etcd)
		back := s.begin("a quorum again")
		s.figure("quorum lost, frozen "+name, s.requireTrue(back, atOnce, pub))
		time.Sleep(ttl + expiryLag)
		s.requireTrue(time.Now(), 0, pub)
		// A leader that was frozen finds the lease expired by its own clock when it goes on, unless another leads by then.
		if absent, _ := s.absence(pub, back); absent > 0 {
			s.figure("quorum lost, absent", absent)
			require.LessOrEqual(t, absent, atOnce)
		}
	}
}

// waitForQuorum waits until etcd answers a linearizable read.
func waitForQuorum(t *testing.T, etcd faultyEtcd) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		_, err := etcd.Client(t).Get(ctx, "x")
		cancel()
		if err == nil {
			return
		}
	}
	t.Fatal("no quorum")
}

func TestAMemberCutOffFromItsPeersNeverTakesTheKeyAway(t *testing.T) {
	t.Parallel()
	const ttl = 4 * time.Second
	etcd := etcdtest.StartCluster(t, 3)
	s := newScene(t, etcd)
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7), discov.WithTTL(ttl))
	for i, member := range etcd.Members {
		etcdtest.Isolate(etcd, member)
		s.begin("member %d is cut off, the leader: %v", i, etcd.Leader() == member)
		time.Sleep(ttl + 2*time.Second)
		s.requireNeverAbsent(pub)
		etcdtest.Rejoin(etcd, member)
		waitForQuorum(t, etcd)
		s.requireTrue(s.begin("rejoined"), 2*atOnce, pub)
	}
	s.requireNeverAbsent(pub)
	s.requireOneLease(pub)
}

// TestAMemberThatRefusesAtOnceHoldsNothingUp: with two endpoints, every second request goes to it, and a repair takes two.
func TestAMemberThatRefusesAtOnceHoldsNothingUp(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.StartCluster(t, 3)
	well, cutOff := etcd.Members[0], etcd.Members[1]
	if etcd.Leader() == cutOff {
		well, cutOff = cutOff, well
	}
	s := newScene(t, well)
	pub := s.publish(append(well.Endpoints(), cutOff.Endpoints()...), "a:1", discov.WithId(7))
	etcdtest.Isolate(etcd, cutOff)
	s.begin("cut off")
	time.Sleep(5 * time.Second) // until it has ended its streams, after three election timeouts
	for i := range 4 {
		require.NoError(t, s.bounded(atOnce, func() error { return pub.Update(t.Context(), "b:"+strconv.Itoa(i)) }))
		remove(t, well, pub.key())
		s.figure("deleted", s.requireTrue(s.begin("deleted"), atOnce, pub))
	}
	etcdtest.Rejoin(etcd, cutOff)
	waitForQuorum(t, etcd)
	s.requireTrue(s.begin("rejoined"), 2*atOnce, pub)
}

func TestAMemberThatIsReplacedAtAnotherAddressNeverTakesTheKeyAway(t *testing.T) {
	t.Parallel()
	const ttl = 4 * time.Second
	etcd := etcdtest.StartProcessCluster(t, 3)
	s := newScene(t, etcd)
	pub := s.publish(etcd.Endpoints(), "a:1", discov.WithId(7), discov.WithTTL(ttl))
	for _, member := range []*etcdtest.Process{etcd.Followers()[0], etcd.Leader()} {
		s.begin("replaced, the leader: %v", member == etcd.Leader())
		etcd.Replace(member)
		time.Sleep(ttl + expiryLag) // a lease that nobody renewed since would have ended
		s.requireTrue(time.Now(), 0, pub)
	}
	s.requireNeverAbsent(pub)
	s.requireOneLease(pub)
}

// 15. KeepAlive where etcd cannot be reached.

// unreachable is every way in which KeepAlive may find etcd: broken, and mended again.
var unreachable = map[string]func(t *testing.T) (etcd faultyEtcd, endpoints []string, mend func()){
	"down": func(t *testing.T) (faultyEtcd, []string, func()) {
		etcd := etcdtest.Start(t)
		path := etcdtest.NewPath(t, etcd.Endpoints()[0])
		path.Refuse()
		return etcd, []string{path.Endpoint()}, path.Accept
	},
	"silent": func(t *testing.T) (faultyEtcd, []string, func()) {
		etcd := etcdtest.Start(t)
		path := etcdtest.NewPath(t, etcd.Endpoints()[0])
		path.Swallow()
		return etcd, []string{path.Endpoint()}, path.Heal
	},
	"deaf": func(t *testing.T) (faultyEtcd, []string, func()) {
		etcd := etcdtest.Start(t)
		path := etcdtest.NewPath(t, etcd.Endpoints()[0])
		path.Swallow()
		return etcd, []string{path.Endpoint()}, func() {
			path.DeafenCurrent()
			path.Heal()
		}
	},
	"frozen": func(t *testing.T) (faultyEtcd, []string, func()) {
		etcd := etcdtest.StartProcess(t)
		return etcd, etcd.Endpoints(), etcd.Thaw
	},
	"without a quorum": func(t *testing.T) (faultyEtcd, []string, func()) {
		etcd := etcdtest.StartProcessCluster(t, 3, etcdtest.QuickTicks())
		return etcd, etcd.Endpoints(), func() {
			etcd.Start()
			waitForQuorum(t, etcd)
		}
	},
}

// breakNow makes the faults that a scene's observer must not meet at its start.
func breakNow(etcd faultyEtcd, name string) {
	switch name {
	case "frozen":
		etcd.(*etcdtest.Process).Freeze()
	case "without a quorum":
		// What a follower passes on to a leader that died just now is lost, and it does not know yet.
		cluster := etcd.(*etcdtest.ProcessCluster)
		followers := cluster.Followers()
		cluster.Leader().Kill()
		followers[0].Kill()
	}
}

func TestKeepAliveFailsInTimeWhereEtcdIsOutOfReachAndSucceedsLater(t *testing.T) {
	t.Parallel()
	for name, make := range unreachable {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd, endpoints, mend := make(t)
			s := newScene(t, etcd)
			breakNow(etcd, name)
			pub := s.newInstance(endpoints, "a:1", discov.WithId(7), discov.WithTTL(shortTTL), discov.WithTimeout(time.Second))
			err := s.bounded(time.Second, pub.start)
			require.Error(t, err)
			t.Log(err)
			require.ErrorContains(t, err, prefix)
			pub.requireState(discov.StateIdle) // on a slow machine the bound comes before the clean-up's end
			var left *discov.WithdrawError
			if !errors.As(err, &left) { // or else the withdrawal goes on
				s.requireNoGoroutines()
			}
			mend()
			s.requireGone(s.begin("mended"), shortTTL+expiryLag) // what was on its way may have been applied
			s.requireNoGoroutines()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			require.NoError(t, s.bounded(5*time.Second, func() error { return pub.startWithin(ctx) }))
			s.requireTrue(time.Now(), 0, pub)
		})
	}
}

func TestKeepAliveThatIsWaitingRegistersAsSoonAsEtcdAnswers(t *testing.T) {
	t.Parallel()
	for name, make := range unreachable {
		for _, background := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, in the background: %v", name, background), func(t *testing.T) {
				t.Parallel()
				etcd, endpoints, mend := make(t)
				s := newScene(t, etcd)
				breakNow(etcd, name)
				options := []discov.PubOption{discov.WithId(7), discov.WithTTL(shortTTL), discov.WithTimeout(10 * time.Second)}
				if background {
					options = append(options, discov.WithBackgroundStart())
				}
				pub := s.newInstance(endpoints, "a:1", options...)
				started := startLater(pub)
				if background {
					select {
					case err := <-started:
						require.NoError(t, err)
					case <-time.After(callSlack):
						t.Fatal("KeepAlive waits")
					}
				}
				time.Sleep(4 * time.Second)
				mend()
				mended := s.begin("mended")
				s.figure("registered", s.requireTrue(mended, atOnce, pub))
				if !background {
					require.NoError(t, <-started)
				}
				time.Sleep(shortTTL + expiryLag)
				s.requireTrue(time.Now(), 0, pub)
				s.requireNeverAbsent(pub)
			})
		}
	}
}

// startLater starts the Publisher in the background.
func startLater(pub *instance) <-chan error {
	started := make(chan error, 1)
	go func() { started <- pub.start() }()
	return started
}

func TestKeepAliveSucceedsWithOneOfThreeEndpointsOutOfReach(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*etcdtest.Path){
		"dead":   (*etcdtest.Path).Refuse,
		"silent": (*etcdtest.Path).Swallow,
	} {
		for which := range 3 {
			t.Run(fmt.Sprintf("%s, number %d", name, which), func(t *testing.T) {
				t.Parallel()
				etcd := etcdtest.Start(t) // three ways to one member: the client cannot tell
				var endpoints []string
				for i := range 3 {
					path := etcdtest.NewPath(t, etcd.Endpoints()[0])
					if i == which {
						fault(path)
					}
					endpoints = append(endpoints, path.Endpoint())
				}
				s := newScene(t, etcd)
				pub := s.newInstance(endpoints, "a:1", discov.WithId(7), discov.WithTTL(shortTTL))
				began := time.Now()
				require.NoError(t, s.bounded(5*time.Second, pub.start))
				s.figure("KeepAlive", time.Since(began))
				time.Sleep(2 * shortTTL)
				s.requireTrue(time.Now(), 0, pub)
				s.requireNeverAbsent(pub)
			})
		}
	}
}

// 16. Calls in the middle of a fault.

// An outage is a fault that begins and ends.
type outage struct {
	etcd       faultyEtcd
	endpoints  []string
	begin, end func()
	// renews says that the lease has its whole TTL again at the end.
	renews bool
}

var outages = map[string]func(t *testing.T) outage{
	"killed": func(t *testing.T) outage {
		etcd := etcdtest.StartProcess(t)
		return outage{etcd, etcd.Endpoints(), etcd.Kill, func() { etcd.Start() }, true}
	},
	"frozen": func(t *testing.T) outage {
		etcd := etcdtest.StartProcess(t)
		return outage{etcd, etcd.Endpoints(), etcd.Freeze, etcd.Thaw, false}
	},
	"cut off": func(t *testing.T) outage {
		etcd := etcdtest.Start(t)
		path := etcdtest.NewPath(t, etcd.Endpoints()[0])
		return outage{etcd, []string{path.Endpoint()}, func() { path.Refuse(); path.Reset() }, path.Accept, false}
	},
	"swallowed": func(t *testing.T) outage {
		etcd := etcdtest.Start(t)
		path := etcdtest.NewPath(t, etcd.Endpoints()[0])
		return outage{etcd, []string{path.Endpoint()}, path.Swallow, path.Heal, false}
	},
	"lost": func(t *testing.T) outage {
		etcd := etcdtest.Start(t)
		path := etcdtest.NewPath(t, etcd.Endpoints()[0])
		return outage{etcd, []string{path.Endpoint()},
			func() { path.DeafenCurrent(); path.Swallow() },
			func() { path.DeafenCurrent(); path.Heal() }, false}
	},
}

const (
	outageTTL     = 4 * time.Second
	outageTimeout = time.Second
)

// eachOutage runs do in the middle of each outage, a short and a long one, and then after, once it is over.
func eachOutage(t *testing.T, do func(*scene, *instance), after func(s *scene, pub *instance, ended time.Time, o outage, long bool)) {
	t.Parallel()
	for name, make := range outages {
		for _, long := range []bool{false, true} {
			length := "shorter than the TTL"
			if long {
				length = "longer than the TTL"
			}
			t.Run(name+", "+length, func(t *testing.T) {
				t.Parallel()
				o := make(t)
				s := newScene(t, o.etcd)
				pub := s.publish(o.endpoints, "a:1", discov.WithId(7), discov.WithTTL(outageTTL), discov.WithTimeout(outageTimeout))
				o.begin()
				began := s.begin("the outage begins")
				time.Sleep(200 * time.Millisecond)
				do(s, pub)
				if long {
					time.Sleep(outageTTL + 2*expiryLag - time.Since(began))
				}
				o.end()
				after(s, pub, s.begin("the outage is over, after %v", time.Since(began)), o, long)
			})
		}
	}
}

// requireUnconfirmed demands that the call ends in time and says that etcd has not confirmed it.
func requireUnconfirmed(s *scene, pub *instance, call func(context.Context) error) {
	s.t.Helper()
	err := s.bounded(outageTimeout, func() error { return call(s.t.Context()) })
	var withdraw *discov.WithdrawError
	require.ErrorAs(s.t, err, &withdraw)
	require.Equal(s.t, prefix+"/7", withdraw.Key)
	require.WithinRange(s.t, withdraw.Until, time.Now().Add(-outageTTL), time.Now().Add(outageTTL))
	require.Equal(s.t, discov.StateWithdrawing, pub.Status().State)
}

// requireStaysGone demands that the key is gone in time, and does not come back.
func requireStaysGone(s *scene, pub *instance, ended time.Time, within time.Duration) {
	s.t.Helper()
	s.figure("gone", s.requireGone(ended, within))
	time.Sleep(1500 * time.Millisecond)
	s.requireGone(time.Now(), 0)
	for _, change := range s.History(pub.key()) {
		if change.Time.After(ended.Add(within)) {
			s.t.Fatalf("%v", change)
		}
	}
}

func TestAPauseInAnOutageIsBoundedAndTheKeyIsGoneWithinASecondOfItsEnd(t *testing.T) {
	eachOutage(t,
		func(s *scene, pub *instance) { requireUnconfirmed(s, pub, pub.PauseContext) },
		func(s *scene, pub *instance, ended time.Time, _ outage, _ bool) {
			requireStaysGone(s, pub, ended, atOnce)
			pub.requireState(discov.StatePaused)
			require.NoError(s.t, s.bounded(outageTimeout, func() error { return pub.ResumeContext(s.t.Context()) }))
			s.requireTrue(time.Now(), 0, pub)
		})
}

func TestAStopInAnOutageIsBoundedAndTheKeyIsGoneWithinASecondOfItsEndOrWithItsLease(t *testing.T) {
	eachOutage(t,
		func(s *scene, pub *instance) {
			requireUnconfirmed(s, pub, pub.StopContext)
			require.ErrorIs(s.t, pub.KeepAlive(), discov.ErrStopped)
			require.ErrorIs(s.t, pub.ResumeContext(s.t.Context()), discov.ErrStopped)
		},
		func(s *scene, pub *instance, ended time.Time, o outage, long bool) {
			within := atOnce
			if long && o.renews {
				within = outageTTL + restartLag
			}
			requireStaysGone(s, pub, ended, within)
			pub.requireState(discov.StateStopped)
			s.requireNoGoroutines()
		})
}

func TestAnUpdateInAnOutageIsBoundedAndTheLatestValueIsThereAtItsEnd(t *testing.T) {
	eachOutage(t,
		func(s *scene, pub *instance) {
			for _, value := range []string{"a:2", "a:3"} {
				require.Error(s.t, s.bounded(outageTimeout, func() error { return pub.Update(s.t.Context(), value) }))
			}
		},
		func(s *scene, pub *instance, ended time.Time, _ outage, _ bool) {
			s.figure("updated", s.requireTrue(ended, atOnce, pub))
			time.Sleep(atOnce)
			kv, _ := s.KV(s.t, pub.key())
			require.Equal(s.t, "a:3", kv.Value)
			latest := ""
			for _, change := range s.History(pub.key()) {
				if !change.Gone {
					require.GreaterOrEqual(s.t, change.Value, latest, "an older value came after a newer one: %v", change)
					latest = change.Value
				}
			}
		})
}

func TestAPauseAndAResumeInAnOutageEndInTheKeyBeingThere(t *testing.T) {
	eachOutage(t,
		func(s *scene, pub *instance) {
			for range 2 {
				ctx, cancel := context.WithTimeout(s.t.Context(), 300*time.Millisecond)
				require.Error(s.t, s.bounded(300*time.Millisecond, func() error { return pub.PauseContext(ctx) }))
				cancel()
				ctx, cancel = context.WithTimeout(s.t.Context(), 300*time.Millisecond)
				require.Error(s.t, s.bounded(300*time.Millisecond, func() error { return pub.ResumeContext(ctx) }))
				cancel()
			}
		},
		func(s *scene, pub *instance, ended time.Time, _ outage, _ bool) {
			s.figure("present", s.requireTrue(ended, atOnce, pub))
			time.Sleep(outageTTL + expiryLag)
			s.requireTrue(time.Now(), 0, pub)
			if absent, back := s.absence(pub, ended); absent > 0 {
				require.LessOrEqual(s.t, back.Sub(ended), atOnce)
			}
		})
}

func TestCallsAtTheInstantOfAFaultEndInWhatWasAskedForLast(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	path := etcdtest.NewPath(t, etcd.Endpoints()[0])
	s := newScene(t, etcd)
	pub := s.publish([]string{path.Endpoint()}, "a:0", discov.WithId(7), discov.WithTTL(5*time.Second), discov.WithTimeout(4*time.Second))
	faults := []struct {
		name string
		make func()
	}{
		{"deaf", path.DeafenCurrent},
		{"reset", path.Reset},
		{"wiped", etcd.Wipe},
		{"revoked", func() {
			if lease := pub.Status().Lease; lease != 0 {
				_, _ = etcd.Client(t).Revoke(t.Context(), lease)
			}
		}},
		{"deleted", func() { remove(t, etcd, prefix+"/7") }},
		{"restarted", etcd.Restart},
	}
	for round, fault := range append(faults, faults...) {
		var calls sync.WaitGroup
		calls.Go(func() { _ = s.bounded(4*time.Second, func() error { return pub.PauseContext(t.Context()) }) })
		calls.Go(func() {
			_ = s.bounded(4*time.Second, func() error { return pub.Update(t.Context(), "a:"+strconv.Itoa(round)) })
		})
		calls.Go(func() { _ = s.bounded(4*time.Second, func() error { return pub.ResumeContext(t.Context()) }) })
		fault.make()
		s.begin("%s", fault.name)
		calls.Wait()
		if round%2 == 0 {
			require.NoError(t, s.bounded(4*time.Second, func() error { return pub.PauseContext(t.Context()) }), fault.name)
			s.requireGone(time.Now(), 100*time.Millisecond)
		}
		require.NoError(t, s.bounded(4*time.Second, func() error { return pub.ResumeContext(t.Context()) }), fault.name)
		s.requireTrue(time.Now(), 100*time.Millisecond, pub)
	}
}

// What the tests do to etcd.

func remove(t *testing.T, etcd faultyEtcd, key string) {
	t.Helper()
	_, err := etcd.Client(t).Delete(t.Context(), key)
	require.NoError(t, err)
}

func revoke(t *testing.T, etcd faultyEtcd, lease clientv3.LeaseID) {
	t.Helper()
	_, err := etcd.Client(t).Revoke(t.Context(), lease)
	require.NoError(t, err)
}

// raiseRevision makes n writes.
func raiseRevision(t *testing.T, etcd faultyEtcd, n int) {
	t.Helper()
	for range n {
		_, err := etcd.Client(t).Put(t.Context(), "other", "x")
		require.NoError(t, err)
	}
}
