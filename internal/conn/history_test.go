package conn

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/auth"
	"github.com/discov-go/discov/internal/etcd"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// toldWentBack returns how many of the leases have heard that etcd went back, since they were asked last.
func toldWentBack(leases []*etcd.Keepalive) (n int) {
	for _, lease := range leases {
		select {
		case <-lease.Bell:
			if errors.Is(lease.Take(), etcd.ErrWentBack) {
				n++
			}
		default:
		}
	}
	return n
}

func TestARevisionThatWentBackIsToldOnce(t *testing.T) {
	t.Parallel()
	type answer struct{ before, rev int64 }
	for name, c := range map[string]struct {
		answers []answer
		told    int
		latest  int64
	}{
		"it goes on":                                {answers: []answer{{0, 5}, {5, 5}, {5, 7}}, told: 0, latest: 7},
		"it goes back":                              {answers: []answer{{0, 5}, {5, 2}}, told: 1, latest: 2},
		"an answer is overtaken":                    {answers: []answer{{0, 5}, {5, 9}, {5, 7}}, told: 0, latest: 9},
		"one that was made before anything":         {answers: []answer{{0, 5}, {0, 3}}, told: 0, latest: 5},
		"all that were under way when it went back": {answers: []answer{{0, 9}, {9, 2}, {9, 3}, {9, 2}}, told: 1, latest: 3},
		"it goes back twice":                        {answers: []answer{{0, 9}, {9, 5}, {5, 2}}, told: 2, latest: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			told := 0
			h := history{wentBack: func() { told++ }}
			for _, one := range c.answers {
				h.note(one.before, one.rev)
			}
			require.Equal(t, c.told, told)
			require.Equal(t, c.latest, h.latest())
		})
	}
}

func TestAnAnswerThatGoesBackIsToldToAllLeasesOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		c := f.conn(t)
		leases, user := keep(t, c, 3), c.Caller(usual)
		f.setRev(100, 0)
		_, _, err := user.Get(t.Context(), testKey)
		require.NoError(t, err)
		f.setRev(2, 0)
		for range 3 {
			_, _, err = user.Get(t.Context(), testKey)
			require.NoError(t, err)
		}
		require.Equal(t, 3, toldWentBack(leases))
		require.Zero(t, toldWentBack(leases))
	})
}

func TestAnEtcdThatWentBackIsFoundOutByARenewal(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		c := f.conn(t)
		leases := keep(t, c, 3)
		f.setRev(100, 0)
		require.NoError(t, c.own.askRevision(t.Context()))
		f.setRev(2, 0)
		time.Sleep(testTTL / 2)
		require.Equal(t, 3, toldWentBack(leases))
	})
}

func TestAMemberThatLagsCostsOneQuestionASecondAndIsNoNews(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		c := f.conn(t)
		leases, user := keep(t, c, 1), c.Caller(usual)
		f.setRev(100, 0)
		require.NoError(t, c.own.askRevision(t.Context()))
		f.setRev(101, 50)
		f.forget()
		const tenths = 100
		for range tenths {
			require.NoError(t, user.Renew(t.Context(), leases[0]))
			time.Sleep(time.Second / 10)
		}
		at, _ := got[*pb.TxnRequest](f)
		require.LessOrEqual(t, len(at), tenths/10+1)
		require.GreaterOrEqual(t, len(at), tenths/10-1)
		require.Zero(t, toldWentBack(leases))
	})
}

func TestAnAnswerThatWasOnItsWayIsNoDoubt(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		c := f.conn(t)
		leases, user := keep(t, c, 1), c.Caller(usual)
		f.setRev(100, 1) // its streams tell of the update before
		for range 100 {
			_, err := user.Put(t.Context(), etcd.Write{Key: testKey, Value: "v", Outdated: func() bool { return false }})
			require.NoError(t, err)
			require.NoError(t, user.Renew(t.Context(), leases[0]))
			time.Sleep(time.Second / 10)
		}
		require.Empty(t, when[*pb.TxnRequest](f))
	})
}

func TestNoAnswerIsNoNewsOfEtcdsRevision(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		c := f.conn(t)
		leases := keep(t, c, 1)
		f.setRev(100, 0)
		require.NoError(t, c.own.askRevision(t.Context()))
		f.setRev(101, 50)
		f.meets(func(ctx context.Context, request any) error {
			if _, ok := request.(*pb.TxnRequest); ok {
				<-ctx.Done()
			}
			return nil
		})
		time.Sleep(time.Minute)
		require.Zero(t, toldWentBack(leases))
	})
}

// Isolate cuts a member off from its peers, but not from its clients: until it notices, it knows no better.
func TestAMemberThatLagsDoesNotSayByItselfThatEtcdWentBack(t *testing.T) {
	t.Parallel()
	cluster := etcdtest.StartCluster(t, 3)
	behind := cluster.Followers()[0]
	c := newConn(t, Target{}.To(behind.Endpoints()))
	require.NoError(t, c.own.Ready(deadline(t, eventually)))
	require.NoError(t, c.own.askRevision(deadline(t, eventually)))
	lease := newLease(1, testTTL)
	c.beats.KeepAlive(lease)
	defer c.beats.LetGo(lease)

	etcdtest.Isolate(cluster, behind)
	put, err := cluster.Leader().Client(t).Put(deadline(t, eventually), testKey, "v")
	require.NoError(t, err)
	c.history.note(0, put.Header.Revision) // as another link, to another member, would have told
	// Until an election is due, it does not notice that it is alone.
	require.Error(t, c.own.askRevision(deadline(t, 400*time.Millisecond)))
	require.Equal(t, put.Header.Revision, c.history.latest())
	require.Zero(t, toldWentBack([]*etcd.Keepalive{lease}))
}

func TestToAskForTheRevisionNeedsNoPermissionAndChangesNothing(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.QuickTicks(), etcdtest.WithAuth("may", "secret"))
	srv.AddUser(t, "maynot", "secret")
	before, err := srv.Client(t).Get(deadline(t, eventually), testKey)
	require.NoError(t, err)
	c := newConn(t, Target{Login: auth.Login{User: "maynot", Pass: "secret"}}.To(srv.Endpoints()))
	for range 3 {
		require.NoError(t, c.own.askRevision(deadline(t, eventually)))
	}
	require.Equal(t, before.Header.Revision, c.history.latest())
	srv.NoSpace(t)
	require.NoError(t, c.own.askRevision(deadline(t, eventually)))
}
