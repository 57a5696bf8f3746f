package conn

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/discov-go/discov/internal/auth"
	"github.com/discov-go/discov/internal/etcd"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// watchAll watches keys that are there, at the revision of now, until the test is over.
func watchAll(t *testing.T, f *fakeEtcd, c *Conn, n int) (names []string, watchers []*etcd.Watcher) {
	t.Helper()
	for i := range n {
		names = append(names, fmt.Sprintf("%s/%d", testKey, i))
		f.put(names[i], "v")
	}
	for i, name := range names {
		now := etcd.Entry{Value: "v", Rev: int64(i) + 2}
		w := c.keys.Watch(name, now, int64(n)+1, etcd.NewBell())
		t.Cleanup(w.Cancel)
		watchers = append(watchers, w)
	}
	time.Sleep(50 * time.Millisecond) // requests of watches wait for others, to go out with them
	synctest.Wait()
	f.forget()
	return names, watchers
}

// denies refuses to watch or to read these keys.
func (f *fakeEtcd) denies(watching, reading func(key string) bool) {
	f.meets(func(_ context.Context, request any) error {
		switch r := request.(type) {
		case *pb.WatchCreateRequest:
			if watching(string(r.GetKey())) {
				return rpctypes.ErrGRPCPermissionDenied
			}
		case *pb.TxnRequest:
			for _, op := range r.GetSuccess() {
				if reading(string(op.GetRequestRange().GetKey())) {
					return rpctypes.ErrGRPCPermissionDenied
				}
			}
		}
		return nil
	})
}

func no(string) bool  { return false }
func yes(string) bool { return true }

// news returns what a watcher has to tell, if it has.
func news(w *etcd.Watcher) (last etcd.Change, isNew bool, err error) {
	select {
	case <-w.Bell:
		return w.Take()
	default:
		return etcd.Change{}, false, nil
	}
}

// requireNews demands that a watcher has something to tell, or nothing, and returns it.
func requireNews(t *testing.T, w *etcd.Watcher, want bool, why ...any) etcd.Change {
	t.Helper()
	last, isNew, err := news(w)
	require.NoError(t, err)
	require.Equal(t, want, isNew, why...)
	return last
}

func TestAnAuditTellsWhatAWatchHasMissed(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		names, watchers := watchAll(t, f, f.conn(t), 3) // the fake's watches tell nothing
		f.put(names[1], "other")
		f.mu.Lock()
		delete(f.keys, names[2])
		f.mu.Unlock()
		time.Sleep(auditEvery)
		requireNews(t, watchers[0], false, "nothing has happened to it")
		last := requireNews(t, watchers[1], true)
		require.Equal(t, "other", last.Now.Value)
		last = requireNews(t, watchers[2], true)
		require.False(t, last.Now.Exists())
		time.Sleep(2 * auditEvery)
		for _, w := range watchers {
			requireNews(t, w, false, "it was told")
		}
	})
}

func TestAnAuditReadsManyKeysInOneRequest(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		watchAll(t, f, f.conn(t), 2*auditBatch+1)
		time.Sleep(auditEvery)
		_, txns := got[*pb.TxnRequest](f)
		require.Len(t, txns, 3)
		read := map[string]bool{}
		for _, txn := range txns {
			require.LessOrEqual(t, len(txn.GetSuccess()), auditBatch)
			for _, op := range txn.GetSuccess() {
				read[string(op.GetRequestRange().GetKey())] = true
			}
		}
		require.Len(t, read, 2*auditBatch+1)
		require.Empty(t, when[*pb.RangeRequest](f))
	})
}

func TestAuditsComeNowAndThenAndEndWithTheLastKey(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		c := f.conn(t)
		_, watchers := watchAll(t, f, c, 1)
		time.Sleep(10 * auditEvery)
		at, _ := got[*pb.TxnRequest](f)
		require.GreaterOrEqual(t, len(at), 10)
		require.LessOrEqual(t, len(at), 13, "three quarters apart at least")
		watchers[0].Cancel()
		f.forget()
		time.Sleep(2 * auditEvery)
		require.Empty(t, when[*pb.TxnRequest](f))
		_, watchers = watchAll(t, f, c, 1)
		time.Sleep(auditEvery)
		require.NotEmpty(t, when[*pb.TxnRequest](f), "they begin anew")
		watchers[0].Cancel()
	})
}

func TestAKeyThatMayNotBeReadIsToldSoAndTheOthersAreRead(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		names, watchers := watchAll(t, f, f.conn(t), auditBatch)
		f.denies(no, func(key string) bool { return key == names[40] })
		f.put(names[39], "other")
		f.put(names[99], "other")
		time.Sleep(auditEvery)
		for i, w := range watchers {
			_, isNew, err := news(w)
			require.Equal(t, i == 39 || i == 99, isNew, i)
			require.Equal(t, i == 40, etcd.IsDenied(err), i)
		}
		require.LessOrEqual(t, len(when[*pb.TxnRequest](f)), 16, "to find one among a hundred")
		f.forget()
		time.Sleep(auditEvery)
		require.Len(t, when[*pb.TxnRequest](f), 1, "it is not read any more")
	})
}

func TestKeysAreReadFewerAtOnceWhereEtcdTakesNoMore(t *testing.T) {
	for _, refusal := range []error{rpctypes.ErrGRPCTooManyOps, rpctypes.ErrGRPCRequestTooLarge} {
		inBubble(t, func(t *testing.T, f *fakeEtcd) {
			names, watchers := watchAll(t, f, f.conn(t), auditBatch)
			f.meets(func(_ context.Context, request any) error {
				if r, ok := request.(*pb.TxnRequest); ok && len(r.GetSuccess()) > 60 {
					return refusal
				}
				return nil
			})
			f.put(names[0], "other")
			time.Sleep(auditEvery)
			requireNews(t, watchers[0], true)
			require.Len(t, when[*pb.TxnRequest](f), 3)
		})
	}
}

func TestAnAuditThatFailsTellsNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		_, watchers := watchAll(t, f, f.conn(t), 2)
		f.meets(func(context.Context, any) error { return rpctypes.ErrGRPCTimeout })
		time.Sleep(3 * auditEvery)
		for _, w := range watchers {
			requireNews(t, w, false)
		}
	})
}

func TestAWatchThatIsDeniedIsAskedForAgainOnceTheKeyCanBeRead(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		c := f.conn(t)
		f.denies(yes, no)
		_, watchers := watchAll(t, f, c, 1)
		f.denies(no, no)
		time.Sleep(auditEvery)
		require.Len(t, when[*pb.WatchCreateRequest](f), 1)
		time.Sleep(2 * auditEvery)
		require.Len(t, when[*pb.WatchCreateRequest](f), 1, "it stands")
		requireNews(t, watchers[0], false)
	})
}

func TestAWatchThatIsDeniedIsNotAskedForWhileTheKeyCannotBeRead(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		c := f.conn(t)
		f.denies(yes, yes)
		_, watchers := watchAll(t, f, c, 1)
		time.Sleep(3 * auditEvery)
		require.Empty(t, when[*pb.WatchCreateRequest](f))
		_, _, err := news(watchers[0])
		require.True(t, etcd.IsDenied(err))
	})
}

func TestAWatchThatAMemberRefusesGoesToTheNextOnce(t *testing.T) {
	for refusals, told := range map[int]error{0: nil, 1: nil, 2: rpctypes.ErrNoLeader, 3: rpctypes.ErrNoLeader} {
		inBubble(t, func(t *testing.T, f *fakeEtcd) {
			tries := 0
			f.watchErr = func() error {
				if tries++; tries <= refusals {
					return rpctypes.ErrGRPCNoLeader
				}
				return nil
			}
			_, watchers := watchAll(t, f, f.conn(t), 1)
			_, _, err := news(watchers[0])
			require.ErrorIs(t, err, told)
			f.mu.Lock()
			defer f.mu.Unlock()
			require.Equal(t, min(refusals+1, 2), tries)
		})
	}
}

func TestWhatIsKnownOfAKeyNeverGoesBack(t *testing.T) {
	t.Parallel()
	const revs = 200_000
	k := &key{user: etcd.Watcher{Bell: etcd.NewBell()}}
	w := &k.user
	var telling sync.WaitGroup
	for first, tell := range []func(etcd.Entry, int64){k.Tell, k.found} {
		telling.Go(func() {
			for rev := int64(first) + 1; rev <= revs; rev += 2 {
				tell(etcd.Entry{Value: "v", Rev: rev}, rev)
			}
		})
	}
	for known := int64(0); known < revs; {
		<-w.Bell
		last, _, _ := w.Take()
		require.GreaterOrEqual(t, last.Rev, known)
		known = last.Rev
	}
	telling.Wait()
}

func TestNoWatcherIsLeftAtEtcd(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.QuickTicks())
	c := newConn(t, Target{}.To(srv.Endpoints()))
	var watchers []*etcd.Watcher
	for i := range 10 {
		watchers = append(watchers, c.keys.Watch(fmt.Sprint(testKey, i), etcd.Entry{}, 1, etcd.NewBell()))
	}
	etcdtest.RequireSoon(t, eventually, func() bool { return srv.Watchers() == 10 })
	_, err := srv.Client(t).Put(deadline(t, eventually), testKey+"3", "v")
	require.NoError(t, err)
	<-watchers[3].Bell
	last, isNew, err := watchers[3].Take()
	require.NoError(t, err)
	require.True(t, isNew)
	require.Equal(t, "v", last.Now.Value)
	for _, w := range watchers {
		w.Cancel()
		w.Cancel()
	}
	etcdtest.RequireSoon(t, eventually, func() bool { return srv.Watchers() == 0 })
	require.Empty(t, c.keys.all)
}

func TestARealEtcdDeniesAWatchAndGivesIt(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.QuickTicks(), etcdtest.WithAuth("may", "secret"))
	srv.AddUser(t, "other", "secret")
	srv.Grant(t, "other", testKey, "", clientv3.PermissionType(clientv3.PermWrite))
	c := newConn(t, Target{Login: auth.Login{User: "other", Pass: "secret"}}.To(srv.Endpoints()))
	w := c.keys.Watch(testKey, etcd.Entry{}, 1, etcd.NewBell())
	defer w.Cancel()
	one := c.keys.toAudit()[0]
	isBlind := func() bool {
		one.mu.Lock()
		defer one.mu.Unlock()
		return one.blind
	}
	etcdtest.RequireSoon(t, eventually, isBlind)
	srv.Revoke(t, "other", testKey, "")
	srv.Grant(t, "other", testKey, "", clientv3.PermissionType(clientv3.PermReadWrite))
	c.keys.read(c.keys.toAudit()) // as an audit does
	etcdtest.RequireSoon(t, eventually, func() bool { return srv.Watchers() == 1 })
	srv.Revoke(t, "other", testKey, "")
	c.keys.read(c.keys.toAudit())
	<-w.Bell
	_, _, err := w.Take()
	require.True(t, etcd.IsDenied(err), err)
}
