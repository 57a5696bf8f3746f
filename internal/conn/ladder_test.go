package conn

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/discov-go/discov/internal/etcd"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ranges lets the reads meet these.
func (f *fakeEtcd) ranges(these meets) {
	f.meetsInTurn(these, func(request any) bool {
		r, ok := request.(*pb.RangeRequest)
		return ok && !r.GetSerializable() // which is a question about the link
	})
}

// reads returns when keys were read.
func reads(f *fakeEtcd) (at []time.Duration) {
	all, these := got[*pb.RangeRequest](f)
	for i, one := range these {
		if !one.GetSerializable() {
			at = append(at, all[i])
		}
	}
	return at
}

func TestLadder(t *testing.T) {
	for name, c := range map[string]struct {
		members int
		meets   meets
		asked   []time.Duration
		is      error
		took    time.Duration
	}{
		"an answer is the answer": {members: 1, asked: seconds(0)},
		"an error is, too": {
			members: 1, meets: meets{fails(rpctypes.ErrGRPCPermissionDenied)},
			asked: seconds(0), is: rpctypes.ErrPermissionDenied,
		},
		"what has no answer is asked again": {
			members: 1, meets: meets{takes(never)},
			asked: []time.Duration{0, askAgain}, took: askAgain,
		},
		"unless etcd goes on answering what was asked before": {
			members: 1, meets: meets{takes(never), takes(never), takes(never)},
			asked: []time.Duration{0, askAgain, 2 * askAgain}, is: context.DeadlineExceeded, took: usual.Call,
		},
		"what one member cannot do, the next is asked": {
			members: 2, meets: meets{fails(rpctypes.ErrGRPCNoLeader)},
			asked: seconds(0, 0),
		},
		"also what it does not know": {
			members: 2, meets: meets{fails(status.Error(codes.Unimplemented, "what?"))},
			asked: seconds(0, 0),
		},
		"but only the next": {
			members: 2, meets: meets{fails(rpctypes.ErrGRPCNoLeader), fails(rpctypes.ErrGRPCNoLeader)},
			asked: seconds(0, 0), is: rpctypes.ErrNoLeader,
		},
		"and only where there are others": {
			members: 1, meets: meets{fails(rpctypes.ErrGRPCNoLeader)},
			asked: seconds(0), is: rpctypes.ErrNoLeader,
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				if c.members > 1 {
					f.serve(t, "two:2379")
				}
				user := f.user(t, usual)
				f.ranges(c.meets)
				_, _, err := user.Get(t.Context(), testKey)
				require.ErrorIs(t, err, c.is)
				require.Equal(t, c.took, f.since())
				require.Equal(t, c.asked, reads(f))
			})
		})
	}
}

func TestARequestIsMadeAgainOnTheNextLinkWhereItsOwnIsReplaced(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		user := f.user(t, usual)
		f.put(testKey, "v")
		f.deafen()
		old := user.requester.links.link()
		now, _, err := user.Get(t.Context(), testKey)
		require.NoError(t, err)
		require.Equal(t, "v", now.Value)
		require.Equal(t, usual.Patience+spareAfterLeast, f.since())
		require.NotSame(t, old, user.requester.links.link())
		require.Len(t, f.dials, 2)
		synctest.Wait()
		require.Error(t, old.left.Err())
	})
}

func TestEveryRequestAndItsAnswer(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		user, ctx := f.user(t, usual), t.Context()
		latest := func() bool { return false }
		rev, err := user.Put(ctx, etcd.Write{Key: testKey, Value: "v", Lease: 7, Outdated: latest})
		require.NoError(t, err)
		require.EqualValues(t, 2, rev)
		leases, err := user.Leases(ctx, testKey, true)
		require.NoError(t, err)
		require.Equal(t, []clientv3.LeaseID{7}, leases)
		_, err = user.Leases(ctx, "user", false)
		require.NoError(t, err)
		_, ranges := got[*pb.RangeRequest](f)
		require.Empty(t, ranges[0].GetRangeEnd())
		require.Equal(t, "uses", string(ranges[1].GetRangeEnd()))
		require.NoError(t, user.Revoke(ctx, 7))
		f.meets(func(context.Context, any) error { return rpctypes.ErrGRPCLeaseNotFound })
		require.NoError(t, user.Revoke(ctx, 7), "it is gone")
		f.meets(func(context.Context, any) error { return rpctypes.ErrGRPCPermissionDenied })
		require.ErrorIs(t, user.Revoke(ctx, 7), rpctypes.ErrPermissionDenied)
	})
}

func TestAWaitForAConnectionIsLongerAndLongerAndItsErrorSaysThatNothingWasSent(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		f.refuse(errors.New("no route"))
		user := f.conn(t).Caller(usual)
		for _, want := range []time.Duration{usual.Call, 2 * usual.Call, 4 * usual.Call, longestWait, longestWait} {
			began := time.Now()
			_, _, err := user.Get(t.Context(), testKey)
			require.True(t, etcd.IsUnsent(err))
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorContains(t, err, "no route")
			require.Equal(t, want, time.Since(began).Truncate(10*time.Millisecond)) // why is asked for a moment
		}
		f.refuse(nil)
		require.NoError(t, user.Ready(t.Context()))
		f.refuse(errors.New("no route"))
		f.hangUp()
		synctest.Wait()
		began := time.Now()
		require.True(t, etcd.IsUnsent(user.Ready(t.Context())))
		require.Equal(t, usual.Call, time.Since(began).Truncate(10*time.Millisecond), "it begins anew")
	})
}

func TestARequestWhoseContextIsDoneSaysWhatEtcdWasDoing(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		f.refuse(errors.New("no route"))
		user := f.conn(t).Caller(boundless)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, _, err := user.Get(ctx, testKey)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "no route")
		require.False(t, etcd.IsUnsent(err), "it has one bound for all")
		require.Equal(t, 5*time.Second, f.since().Truncate(10*time.Millisecond))
	})
}

func TestReadyWaitsWhileEtcdIsSilent(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		bounds := Bounds{Call: 700 * time.Millisecond, Patience: 300 * time.Millisecond} // sooner than gRPC's own pings
		user := f.user(t, bounds)
		f.refuse(errors.New("no route"))
		f.deafen()
		_, _, err := user.Get(t.Context(), testKey)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		began := time.Now()
		err = user.Ready(t.Context())
		require.True(t, etcd.IsUnsent(err))
		require.ErrorContains(t, err, etcd.ErrSilent.Error())
		require.Equal(t, 2*bounds.Call, time.Since(began))
		time.AfterFunc(time.Second, func() { f.refuse(nil) })
		require.NoError(t, user.Ready(t.Context()))
	})
}

func TestReconnectedComesWithAnotherConnectionOnly(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		user := f.user(t, usual)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.False(t, user.Reconnected(ctx))
		require.Equal(t, time.Minute, f.since())

		time.AfterFunc(time.Second, f.hangUp)
		began := time.Now()
		require.True(t, user.Reconnected(t.Context()))
		require.GreaterOrEqual(t, time.Since(began), time.Second)
	})
}

func TestAPauseEndsWithItsTimeItsLinkOrItsContext(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		c := f.conn(t)
		user := c.Caller(usual)
		require.True(t, user.Pause(t.Context(), time.Second))
		require.Equal(t, time.Second, f.since())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.False(t, user.Pause(ctx, time.Hour))
		require.Equal(t, 2*time.Second, f.since())
		time.AfterFunc(time.Second, func() { replaceLink(t, c) })
		require.True(t, user.Pause(t.Context(), time.Hour))
		require.Equal(t, 3*time.Second, f.since())
	})
}

// replaceLink moves a connection to another link, as a trial does.
func replaceLink(t *testing.T, c *Conn) {
	c.links.run(func() {
		spare, err := dial(c.links.to, false, "", c.links.history)
		if err != nil {
			t.Error(err)
			return
		}
		c.links.moveTo(spare)
	})
}
