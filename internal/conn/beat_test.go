package conn

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcd"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// period is that of a fake lease's beat.
const period = testTTL / beatsPerTTL

// renewals returns when each lease was asked for.
func renewals(f *fakeEtcd) map[int64][]time.Duration {
	of := map[int64][]time.Duration{}
	at, these := got[*pb.LeaseKeepAliveRequest](f)
	for i, one := range these {
		of[one.GetID()] = append(of[one.GetID()], at[i])
	}
	return of
}

// told returns what the lease has heard of since it was asked last.
func told(lease *etcd.Keepalive) error {
	select {
	case <-lease.Bell:
		return lease.Take()
	default:
		return nil
	}
}

func TestAllLeasesOfOneTTLAreRenewedTogetherOnceAThirdOfIt(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		const n, beats = 20, 10
		leases := keep(t, f.conn(t), n)
		time.Sleep(beats * period)
		of := renewals(f)
		require.Len(t, of, n)
		first := of[1]
		require.Len(t, first, beats)
		require.Less(t, first[0], period)
		for i, at := range first {
			require.Equal(t, first[0]+time.Duration(i)*period, at)
		}
		for _, at := range of {
			require.Equal(t, first, at)
		}
		for _, lease := range leases {
			require.NoError(t, told(lease))
			require.True(t, lease.Until().After(time.Now().Add(testTTL-period)))
		}
	})
}

func TestALeaseJoinsAtTheNextBeatAndOneThatIsLetGoIsNotRenewed(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		c := f.conn(t)
		leases := keep(t, c, 2)
		time.Sleep(2 * period)
		later := newLease(3, testTTL)
		c.beats.KeepAlive(later)
		c.beats.LetGo(leases[0])
		f.forget()
		time.Sleep(3 * period)
		c.beats.LetGo(later)
		of := renewals(f)
		require.Empty(t, of[1])
		require.Len(t, of[3], 3)
		require.Equal(t, of[2], of[3])
	})
}

func TestLeasesOfSeveralTTLsHaveBeatsOfTheirOwn(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		c := f.conn(t)
		keep(t, c, 1)
		longer := newLease(2, 2*testTTL)
		c.beats.KeepAlive(longer)
		time.Sleep(6 * period)
		c.beats.LetGo(longer)
		require.Len(t, renewals(f)[1], 6)
		require.Len(t, renewals(f)[2], 3)
		f.forget()
		c.beats.KeepAlive(longer) // a beat that has ended begins again
		time.Sleep(6 * period)
		c.beats.LetGo(longer)
		require.Len(t, renewals(f)[2], 3)
	})
}

func TestNoTwoConnectionsBeatTogether(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		const n = 20
		var waits []time.Duration
		for range n {
			c, err := Open(f.target())
			require.NoError(t, err)
			waits = append(waits, c.beats.untilNext(period))
			c.Close()
		}
		slices.Sort(waits)
		require.Len(t, slices.Compact(waits), n)
		require.Less(t, waits[0], period/2)
		require.Greater(t, waits[n-1], period/2)
		require.LessOrEqual(t, waits[n-1], period)
	})
}

func TestALeaseWithoutARenewalForItsTTLIsToldOnceAndWellAgainAfterwards(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		c := f.conn(t)
		lease := keep(t, c, 1)[0]
		time.Sleep(period)
		f.mute.Store(true)
		time.Sleep(time.Until(lease.Until()) - time.Millisecond)
		require.NoError(t, told(lease), "it has some time left")
		time.Sleep(period)
		err := told(lease)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "for the whole TTL")
		time.Sleep(3 * testTTL)
		require.NoError(t, told(lease), "it was told before")
		f.mute.Store(false)
		f.deafen() // what is pending is asked for again elsewhere
		time.Sleep(testTTL)
		require.NoError(t, told(lease))
		require.True(t, lease.Until().After(time.Now()))
		f.mute.Store(true)
		time.Sleep(2 * testTTL)
		require.Error(t, told(lease), "a second time")
	})
}

func TestALeaseThatEndedIsToldAtItsBeat(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		leases := keep(t, f.conn(t), 3)
		f.mu.Lock()
		f.ended = map[int64]bool{2: true}
		f.mu.Unlock()
		time.Sleep(period)
		require.NoError(t, told(leases[0]))
		require.Error(t, told(leases[1]))
		require.NoError(t, told(leases[2]))
	})
}

func TestRenewalsWithoutAnAnswerAreAskedForOverTheNextLinkAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		const n = 5
		c := f.conn(t)
		leases := keep(t, c, n)
		time.Sleep(period)
		f.forget()
		f.deafen()
		next := c.beats.untilNext(period)
		beat := f.since() + next
		time.Sleep(next + period/2)
		for id, at := range renewals(f) {
			require.Lenf(t, at, 1, "lease %d", id)
			require.LessOrEqual(t, at[0], beat+testTTL/patienceShare+spareAfterLeast+time.Millisecond)
		}
		require.Len(t, renewals(f), n)
		for _, lease := range leases {
			require.NoError(t, told(lease))
		}
	})
}

func TestABeatThatFallsWhileItsLinkIsLeftIsNotLost(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		for range 30 { // either may be noticed first
			c, err := Open(f.target())
			require.NoError(t, err)
			lease := newLease(1, testTTL)
			c.beats.KeepAlive(lease)
			time.Sleep(period)
			f.forget()
			next := c.beats.untilNext(period)
			time.AfterFunc(next, func() { replaceLink(t, c) })
			time.Sleep(next + period/2)
			require.NotEmpty(t, renewals(f)[1])
			require.True(t, lease.IsRenewedSince(time.Now().Add(-period)))
			c.beats.LetGo(lease)
			c.Close()
		}
	})
}

func TestARealEtcdIsAskedOncePerLeaseAndThirdOfItsTTL(t *testing.T) {
	t.Parallel()
	const n, beats, ttl = 50, 3, 3 * time.Second
	srv := etcdtest.Start(t)
	path := etcdtest.NewPath(t, srv.Endpoints()[0])
	c := newConn(t, Target{}.To([]string{path.Endpoint()}))
	user := c.Caller(usual)
	next := ids()
	var leases []*etcd.Keepalive
	for range n {
		lease, _, err := user.Grant(deadline(t, eventually), ttl, next)
		require.NoError(t, err)
		leases = append(leases, lease)
		user.KeepAlive(lease)
		t.Cleanup(func() { user.LetGo(lease) })
	}
	etcdtest.RequireSoon(t, eventually, func() bool { return srv.Requests()["LeaseKeepAlive.msg"] >= beats*n })
	began := time.Now()
	path.DeafenCurrent()
	alive := func() bool {
		return !slices.ContainsFunc(leases, func(lease *etcd.Keepalive) bool { return !lease.IsRenewedSince(began) })
	}
	etcdtest.RequireSoon(t, ttl, alive, "they are renewed over another link")
	for _, lease := range leases {
		require.NoError(t, told(lease))
	}
	require.LessOrEqual(t, srv.Requests()["LeaseKeepAlive.msg"], n*(beats+2+int(time.Since(began)/(ttl/beatsPerTTL))))
	for _, lease := range leases {
		user.LetGo(lease)
		require.NoError(t, user.Revoke(deadline(t, eventually), lease.ID))
	}
	etcdtest.RequireSoon(t, eventually, func() bool { return srv.Leases(t) == 0 }, "one that was asked for twice ends by itself")
}
