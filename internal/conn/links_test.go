package conn

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"
	"weak"

	"github.com/discov-go/discov/internal/etcd"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// dialled returns how many connections were asked for since the test's time began.
func (f *fakeEtcd) dialled() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.dials)
}

func TestALinkThatIsReplacedEndsItsWatches(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		c := f.conn(t)
		_, watchers := watchAll(t, f, c, 2)
		replaceLink(t, c)
		for _, w := range watchers {
			<-w.Bell
			_, isNew, err := w.Take()
			require.Error(t, err)
			require.False(t, isNew)
		}
		require.Empty(t, c.keys.toAudit())
	})
}

func TestASilentMemberOfSeveralIsFoundAlthoughTheOthersAnswer(t *testing.T) {
	for _, addr := range []string{"one:2379", "two:2379"} { // the renewals go to one of them
		inBubble(t, func(t *testing.T, f *fakeEtcd) {
			f.serve(t, "two:2379")
			c := f.conn(t)
			lease, user := keep(t, c, 1)[0], c.Caller(usual)
			time.Sleep(period)
			f.deafen(addr)
			next := c.beats.untilNext(period)
			beat := time.Now().Add(next)
			for time.Now().Before(beat.Add(testTTL/patienceShare + headStart + spareAfterLeast)) {
				_, _, err := user.Get(t.Context(), testKey)
				require.NoError(t, err)
				time.Sleep(time.Millisecond)
			}
			require.True(t, lease.IsRenewedSince(beat))
		})
	}
}

func TestAnEtcdThatBecomesSlowIsHardlyDialled(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		user := f.user(t, usual)
		f.meets(func(ctx context.Context, _ any) error { return takes(1500 * time.Millisecond)(ctx) })
		count := func() int {
			f.forget()
			for until := time.Now().Add(time.Minute); time.Now().Before(until); time.Sleep(2 * time.Second) {
				_, _, _ = user.Get(t.Context(), testKey)
			}
			return f.dialled()
		}
		require.LessOrEqual(t, count(), 4)
		require.Zero(t, count())
	})
}

func TestALinkThatWasFoundWellIsNotInDoubtAgainAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		user := f.user(t, usual)
		links := user.requester.links
		l := links.link()
		require.True(t, links.suspect(l))
		require.True(t, links.suspect(l), "there is a trial of it")
		time.Sleep(acquittal / 2)
		require.Same(t, l, links.link())
		require.False(t, links.suspect(l))
		time.Sleep(acquittal)
		require.True(t, links.suspect(l))
		time.Sleep(time.Second)
		require.Zero(t, f.dialled())
	})
}

func TestALinkStaysWhereNoOtherCanBeMade(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		to := f.target()
		tune := to.Tuning.Apply
		tuned := 0
		to.Tuning.Apply = func(config *clientv3.Config) error {
			if tuned++; tuned > 2 {
				return errors.New("no more")
			}
			return tune(config)
		}
		c := newConn(t, to)
		user := c.Caller(usual)
		_, _, err := user.Get(t.Context(), testKey)
		require.NoError(t, err)
		l := c.links.link()
		time.Sleep(time.Minute)
		f.deafen()
		_, _, err = user.Get(t.Context(), testKey)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Same(t, l, c.links.link())
		_, err = Open(to)
		require.ErrorContains(t, err, "make a client for one:2379: no more")
	})
}

func TestAConnectionThatIsClosedInTheMiddleOfATrialLeavesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		c, err := Open(f.target())
		require.NoError(t, err)
		require.NoError(t, c.own.Ready(t.Context()))
		time.Sleep(time.Minute)
		f.refuse(errors.New("no route"))
		f.deafen()
		lease := newLease(1, testTTL)
		c.beats.KeepAlive(lease)
		w := c.keys.Watch(testKey, etcd.Entry{}, 1, etcd.NewBell())
		require.True(t, c.links.suspect(c.links.link()))
		time.Sleep(time.Second)
		c.Close() // with its users' leases and watches
		_, _, err = w.Take()
		require.Error(t, err)
		c.links.run(func() { t.Error("after the end") })
		require.True(t, c.links.suspect(c.links.link()))
	})
}

// callersClient is one that the caller gives.
func callersClient(t *testing.T, srv *etcdtest.Server) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: srv.Endpoints(), Logger: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	return client
}

func TestTheCallersClientIsNeitherReplacedNorClosed(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.QuickTicks())
	client := callersClient(t, srv)
	c, err := Open(Target{Client: client})
	require.NoError(t, err)
	user := c.Caller(usual)
	require.NoError(t, user.Ready(deadline(t, eventually)))
	l := c.links.link()
	require.True(t, c.links.suspect(l))
	require.Same(t, l, c.links.link())
	_, _, err = user.Get(deadline(t, eventually), testKey)
	require.NoError(t, err)
	c.Close()
	_, err = client.Get(deadline(t, eventually), testKey)
	require.NoError(t, err)
}

func TestAConnectionOverTheCallersClientLeavesNothingThere(t *testing.T) {
	t.Parallel()
	client := callersClient(t, etcdtest.Start(t, etcdtest.QuickTicks()))
	open := func() weak.Pointer[link] {
		c, err := Open(Target{Client: client})
		require.NoError(t, err)
		require.NoError(t, c.own.askRevision(deadline(t, eventually)))
		c.Close()
		return weak.Make(c.links.link())
	}
	l := open()
	etcdtest.RequireSoon(t, eventually, func() bool {
		runtime.GC()
		return l.Value() == nil
	}, "the link is still held")
}

func TestAClosedClientOfTheCallersIsNamedByEveryRequest(t *testing.T) {
	t.Parallel()
	client := callersClient(t, etcdtest.Start(t, etcdtest.QuickTicks()))
	c := newConn(t, Target{Client: client})
	user := c.Caller(usual)
	require.NoError(t, user.Ready(deadline(t, eventually)))
	require.NoError(t, client.Close())
	_, _, err := user.Get(deadline(t, eventually), testKey)
	require.ErrorIs(t, err, etcd.ErrClientClosed)
	_, _, err = user.Watch(testKey, etcd.Entry{}, 1, etcd.NewBell()).Take()
	require.ErrorIs(t, err, etcd.ErrClientClosed)
	require.False(t, user.Reconnected(deadline(t, 50*time.Millisecond)))
}

func TestAKeyIsPutOverOnlyWhereNobodyHasWrittenIt(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.QuickTicks())
	user, ctx := newCaller(t, srv.Endpoints()...), deadline(t, eventually)
	what := etcd.Write{Key: testKey, Value: "ours", Outdated: func() bool { return false }}
	put, _, rev, err := user.PutOver(ctx, etcd.Entry{}, what)
	require.NoError(t, err)
	require.True(t, put)
	put, now, again, err := user.PutOver(ctx, etcd.Entry{}, what)
	require.NoError(t, err)
	require.False(t, put)
	require.Equal(t, etcd.Entry{Value: "ours", Rev: rev}, now)
	require.Equal(t, rev, again)
	put, _, again, err = user.PutOver(ctx, now, what)
	require.NoError(t, err)
	require.True(t, put)
	require.Equal(t, rev+1, again)
	response, err := srv.Client(t).Get(ctx, testKey)
	require.NoError(t, err)
	require.EqualValues(t, 2, response.Kvs[0].Version)
}
