package discov_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// What others do to a key and its lease.

func TestARevokedLeaseOrADeletedKeyIsBackWithin100ms(t *testing.T) {
	t.Parallel()
	s := onServer(t)
	pub := s.publish("a:1", discov.WithId(7))
	for name, fault := range map[string]func(){
		"revoked": func() { s.revoke(pub.Status().Lease) },
		"deleted": func() { s.remove(pub) },
	} {
		var absences []time.Duration
		for range 4 { // ten doubts in less than a second each would be answered with pauses
			before, registered, since := pub.Status(), pub.Stats().Registrations, s.begin("%s", name)
			fault()
			s.requireTrue(since, atOnce, pub)
			now := pub.Status()
			require.Equal(t, name == "deleted", before.Lease == now.Lease, "a lease that is well is kept")
			require.Equal(t, registered+1, pub.Stats().Registrations)
			absent, _ := s.absence(pub, since)
			absences = append(absences, absent)
			time.Sleep(100 * time.Millisecond)
		}
		s.requireMostly(100*time.Millisecond, name, absences)
	}
}

func TestAKeyWithTheLeaseIDIsBackWithin100msOfARevokeUnderANewOne(t *testing.T) {
	t.Parallel()
	s := onServer(t)
	pub := s.publish("a:1")
	var took []time.Duration
	for range 5 {
		old := pub.key()
		revoked := s.begin("revoked")
		s.revoke(pub.Status().Lease)
		took = append(took, s.requireTrue(revoked, atOnce, pub))
		require.NotEqual(t, old, pub.key())
		require.Equal(t, fmt.Sprintf("%s/%d", prefix, pub.Status().Lease), pub.key())
	}
	s.requireMostly(100*time.Millisecond, "revoked, without an id", took)
}

func TestAKeyDeletedBetweenPutAndWatchIsBackWithin100ms(t *testing.T) {
	t.Parallel()
	s := onServer(t)
	c := s.server.Client(t)
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
	pub := s.publish("a:1", discov.WithId(7))
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
	s := onPath(t)
	pub := s.publish("a:1", discov.WithId(7))
	var took []time.Duration
	for round := range 3 {
		s.path.Refuse()
		s.path.Reset()
		s.begin("cut")
		s.remove(pub)
		s.raiseRevision(20)
		s.server.Compact(t)
		time.Sleep(time.Duration(round) * 700 * time.Millisecond)
		s.path.Accept()
		mended := s.begin("mended")
		etcdtest.RequireSoon(t, atOnce, func() bool { return s.path.Connections() > 0 }, "connect again")
		there := s.begin("connected")
		s.requireTrue(mended, atOnce, pub)
		_, back := s.absence(pub, mended)
		s.figure("deleted and compacted, since the path was mended", back.Sub(mended))
		took = append(took, back.Sub(there))
	}
	s.requireMostly(100*time.Millisecond, "deleted and compacted, since the connection", took)
}

func TestAKeyOverwrittenByNobodyIsPutRightWithin100ms(t *testing.T) {
	t.Parallel()
	s := onServer(t)
	pub := s.publish("a:1", discov.WithId(7))
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
			s.put(pub.key(), value, opts...)
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
	s := onServer(t)
	pub := s.publish("a:1", withID(shortTTL)...)
	key := pub.key()
	for round := range 2 {
		s.History(key) // the observer knows of the writes before
		other := s.putByAnother(key)
		since := s.begin("taken by another")
		pub.requireState(discov.StateConflict)
		told := pub.Status().Err
		require.ErrorIs(t, told, discov.ErrConflict)
		require.ErrorContains(t, told, key)
		require.ErrorContains(t, told, strconv.FormatInt(int64(other), 10))
		require.ErrorIs(t, pub.Update(t.Context(), fmt.Sprintf("a:%d", round+2)), discov.ErrConflict)
		for range 10 { // the other instance goes on writing; no write is answered
			s.put(key, "b:2", clientv3.WithLease(other))
			time.Sleep(300 * time.Millisecond)
		}
		require.Equal(t, discov.StateConflict, pub.Status().State)
		for _, change := range s.History(key) {
			if change.Time.After(since) {
				require.Equal(t, "b:2", change.Value, "a write of ours in the conflict")
			}
		}
		s.revoke(other)
		s.requireBack("the other has gone")
		require.NoError(t, pub.Status().Err)
	}

	other := s.putByAnother(key)
	s.others = 1
	require.NoError(t, pub.StopContext(t.Context()))
	kv, ok := s.KV(t, key)
	require.True(t, ok, "Stop has taken away the other's key")
	require.Equal(t, etcdtest.KV{Value: "b:2", Lease: int64(other), Created: kv.Created, Changed: kv.Changed}, kv)
	s.revoke(other)
	s.others = 0
}

// putByAnother puts the key as another instance does, under a lease of its own, which it returns.
func (s *scene) putByAnother(key string) clientv3.LeaseID {
	s.t.Helper()
	lease := s.grant()
	s.put(key, "b:2", clientv3.WithLease(lease))
	return lease
}

func TestAKeyDeletedAsFastAsPossibleIsBackAtOnce(t *testing.T) {
	t.Parallel()
	s := onServer(t)
	pub := s.publish("a:1", withID(2*time.Second)...)
	before, deletes := s.server.Requests(), 0
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); deletes++ {
		s.remove(pub)
	}
	s.requireBack("deleted no more")
	asked := grown(before, s.server.Requests())
	t.Logf("figure: %d deletes in 3 s, asked %v", deletes, asked)
	assert.LessOrEqual(t, asked["Put"]+asked["Txn"], 100, "a busy loop")
}

func TestLeasesRevokedInALoopAreReplacedAtOnceWithoutAPile(t *testing.T) {
	t.Parallel()
	s := onServer(t)
	pubs := s.publishSeveral(5, discov.WithTTL(2*time.Second))
	before, revoked, most := s.server.Requests(), 0, 0
	client := s.server.Client(t)
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		leases := s.server.LeaseIDs(t)
		most = max(most, len(leases))
		for _, id := range leases {
			if _, err := client.Revoke(t.Context(), id); err == nil {
				revoked++
			}
		}
	}
	s.requireKeysBack(s.begin("revoked no more"), pubs...)
	asked := grown(before, s.server.Requests())
	t.Logf("figure: %d revoked in 3 s, asked %v, %d leases at most of 5 Publishers", revoked, asked, most)
	assert.LessOrEqual(t, asked["LeaseGrant"], 500, "a busy loop")
	assert.LessOrEqual(t, most, 5)
	time.Sleep(3 * time.Second)
	s.requireTrue(time.Now(), 0, pubs...)
}

// twoWithOneID are a Publisher and another one with the same ID, as from another process: on connections of their own.
func (s *scene) twoWithOneID() (one, other *instance) {
	s.t.Helper()
	one = s.publish("a:1", append(withID(2*time.Second), discov.Dialling())...)
	return one, s.publish("b:2", append(withID(2*time.Second), discov.Dialling())...)
}

func TestTwoProcessesWithOneIDDontFight(t *testing.T) {
	t.Parallel()
	s := onServer(t)
	one, other := s.twoWithOneID()
	one.requireState(discov.StateConflict)
	before := s.server.Requests()
	time.Sleep(6 * time.Second)
	asked := grown(before, s.server.Requests())
	assert.Zero(t, asked["Put"]+asked["Txn"], "they fight")
	kv, _ := s.KV(t, one.key())
	require.EqualValues(t, other.Status().Lease, kv.Lease)
	s.server.Restart()
	time.Sleep(3 * time.Second)
	require.NoError(t, other.StopContext(t.Context()))
	s.requireTrue(s.begin("the other has stopped"), atOnce, one)
	require.NoError(t, one.StopContext(t.Context()))
	s.requireGone(time.Now(), 0)
}

func TestTwoProcessesWithOneIDThatLoseTheirLeasesOftenDontFight(t *testing.T) {
	t.Parallel()
	s := onServer(t)
	one, other := s.twoWithOneID()
	before := s.server.Requests()
	for range 8 {
		revokeAll(t, s.server)
		time.Sleep(500 * time.Millisecond)
	}
	t.Logf("figure: 8 times all leases lost: asked %v; states %v and %v", grown(before, s.server.Requests()), one.Status().State, other.Status().State)
	// Each has taken it back from the other several times, so the next time may be a while away.
	etcdtest.RequireSoon(t, 12*time.Second, func() bool { return s.Present(t, one.key()) }, "the key is nobody's")
	etcdtest.RequireSoon(t, 2*time.Second, func() bool { return s.server.Leases(t) <= 2 }, "leases")
	before = s.server.Requests()
	time.Sleep(3 * time.Second)
	asked := grown(before, s.server.Requests())
	assert.LessOrEqual(t, asked["Put"]+asked["Txn"], 1, "they fight")
}

func TestAValueThatIsTooLargeIsToldSoAndLeavesTheOldOne(t *testing.T) {
	t.Parallel()
	s := onServer(t)
	pub := s.publish("a:1", withID(2*time.Second)...)
	large := strings.Repeat("x", 1<<20)
	require.NoError(t, pub.updateIn(2*time.Second, large))
	for _, size := range []int{1700 << 10, 2 << 20, 4 << 20} {
		value := strings.Repeat("x", size)
		require.ErrorContains(t, pub.updateIn(defaultTimeout, value), "large", "Update to %d", size)
		other := s.newInstance(value, discov.WithId(2))
		// Half of its time: it does not try again what cannot work.
		require.ErrorContains(t, s.bounded(defaultTimeout/2, other.start), "large", "KeepAlive with %d", size)
		etcdtest.RequireSoon(t, atOnce, func() bool { return s.server.Leases(t) == 1 }, "one lease")
	}
	time.Sleep(3 * time.Second)
	kv, _ := s.KV(t, pub.key())
	require.Equal(t, large, kv.Value, "the old value")
	require.NoError(t, pub.updateIn(2*time.Second, "good"))
	s.requireTrue(time.Now(), 0, pub)
	s.requireNeverAbsent(pub)
}

func TestKeysWithOddBytesAreKept(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	for name, key := range map[string]string{
		"NUL":         "svc\x00",
		"only NUL":    "\x00",
		"not UTF-8":   "svc\xff\xfe\xc3",
		"only 0xff":   "\xff",
		"newline":     "svc\nlevel=ERROR msg=\"forged\"",
		"slashes":     "///svc//",
		"emoji":       "svc🙂",
		"a dot":       ".",
		"very long":   strings.Repeat("k", 64<<10),
		"format verb": "svc%s%d%!",
	} {
		for _, opt := range []discov.PubOption{discov.WithId(1), discov.WithExactKey()} {
			p := discov.NewPublisher(etcd.Endpoints(), key, "v", opt, discov.WithTTL(2*time.Second), discov.Quiet)
			t.Cleanup(p.Stop)
			require.NoError(t, p.KeepAlive(), name)
			holds := func(value string) func() bool {
				return func() bool {
					response, err := etcd.Client(t).Get(t.Context(), p.Status().Key)
					require.NoError(t, err)
					return len(response.Kvs) == 1 && string(response.Kvs[0].Value) == value
				}
			}
			require.True(t, holds("v")(), name)
			_, err := etcd.Client(t).Delete(t.Context(), p.Status().Key)
			require.NoError(t, err)
			etcdtest.RequireSoon(t, atOnce, holds("v"), name)
			require.NoError(t, p.Update(t.Context(), "v\xff\x00"), name)
			require.True(t, holds("v\xff\x00")(), name)
			require.NoError(t, p.StopContext(t.Context()), name)
			require.False(t, holds("v\xff\x00")(), name)
		}
	}
	etcd.RequireLeases(t, 0)
}

func TestATTLGrantedAboveTheOneAskedForIsTheOneThatCounts(t *testing.T) {
	t.Parallel()
	const granted = 2 * time.Second // the least that etcd grants
	s := onPath(t)
	pub := s.publish("a:1", append(withID(time.Second), discov.WithTimeout(time.Second))...)
	require.Equal(t, granted, pub.Status().TTL)
	require.WithinDuration(t, time.Now().Add(granted), pub.Status().Until, time.Second)
	asked, since := s.server.Requests()["LeaseKeepAlive.msg"], time.Now()
	time.Sleep(5 * time.Second)
	asked = s.server.Requests()["LeaseKeepAlive.msg"] - asked
	beats := (time.Since(since) + s.meter.allowance(since, time.Now())) / (granted / 3)
	require.LessOrEqual(t, asked, int(beats)+1, "a third of what was granted, not of what was asked")
	s.requireNeverAbsent(pub)
	s.path.Swallow()
	began := s.begin("swallowing")
	err := pub.stopIn(time.Second)
	var withdraw *discov.WithdrawError
	require.ErrorAs(t, err, &withdraw)
	s.requireGone(began, granted+restartLag) // etcd ends a lease up to half a second late
	t.Logf("figure: gone after %v, told %v", time.Since(began).Round(time.Millisecond), withdraw.Until.Sub(began).Round(time.Millisecond))
	assert.WithinDuration(t, withdraw.Until, time.Now(), granted) // later under load
	s.path.Heal()
	etcdtest.RequireSoon(t, 2*granted, func() bool { return pub.Status().State == discov.StateStopped }, "it has not given up:\n%s", pub)
}

func TestATwinThatCrashesInALoopDelaysTheHealthyOneByTenSecondsAtMost(t *testing.T) {
	t.Parallel()
	const (
		times  = 6
		most   = 10 * time.Second
		halves = 500 * time.Millisecond // there for one, gone for one
	)
	// Each begins the life of a twin, and returns what ends it.
	for how, begin := range map[string]func(*scene) (end func()){
		"it stops": func(s *scene) func() {
			twin := s.publish("b:2", discov.WithId(7))
			return func() { require.NoError(s.t, twin.StopContext(s.t.Context())) }
		},
		"its lease ends": func(s *scene) func() {
			lease := s.putByAnother(prefix + "/7")
			return func() { s.revoke(lease) }
		},
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			s := onServer(t)
			healthy := s.publish("a:1", discov.WithId(7))
			for range times {
				end := begin(s)
				healthy.requireState(discov.StateConflict)
				time.Sleep(halves)
				end()
				time.Sleep(halves)
			}
			free := s.begin("the twin has crashed for the last time").Add(-halves)
			etcdtest.RequireSoon(t, most+atOnce, func() bool { return healthy.Status().State == discov.StatePublished }, "published again:\n%s", healthy)
			s.figure("the key was free", s.requireTrue(free, most+atOnce, healthy))
			var told error
			for _, e := range healthy.told.All() {
				if errors.Is(e.Err, discov.ErrConflict) && strings.Contains(e.Err.Error(), "free") {
					told = e.Err
				}
			}
			require.Error(t, told, "nothing tells why the key is not taken:\n%s", healthy)
			at := clockIn(t, told.Error())
			t.Logf("%v", told)
			var taken time.Time
			for _, change := range s.History(healthy.key()) {
				if change.Value == "a:1" && !change.Gone {
					taken = change.Time
				}
			}
			require.InDelta(t, 0, taken.Sub(at).Seconds(), 2, "it is taken at another time than was told: %v", told)
			require.NoError(t, healthy.Status().Err)
		})
	}
}

// clockIn returns the time of day that ends the text, today's.
func clockIn(t *testing.T, text string) time.Time {
	t.Helper()
	fields := strings.Fields(text)
	now := time.Now()
	at, err := time.ParseInLocation(time.DateOnly+" "+time.TimeOnly, now.Format(time.DateOnly)+" "+fields[len(fields)-1], now.Location())
	require.NoError(t, err, "no time in %q", text)
	return at
}
