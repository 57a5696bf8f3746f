package conn

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ids gives lease IDs, one after the other.
func ids() func() clientv3.LeaseID {
	var last clientv3.LeaseID
	return func() clientv3.LeaseID { last++; return last }
}

func TestAFirstRegistrationOverALongRoundTripAsksForOneLease(t *testing.T) {
	for _, roundTrip := range []time.Duration{10 * time.Millisecond, 1100 * time.Millisecond, 1200 * time.Millisecond, 2 * time.Second} {
		inBubble(t, func(t *testing.T, f *fakeEtcd) {
			f.roundTrip = roundTrip
			user := f.conn(t).Caller(boundless)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			require.NoError(t, user.Ready(ctx))
			lease, strays, err := user.Grant(ctx, testTTL, ids())
			require.NoError(t, err)
			require.Empty(t, strays)
			_, asks := asked(f)
			require.Equal(t, []int64{int64(lease.ID)}, asks)
		})
	}
}

// asked returns the lease IDs that were asked for, in this order, and when.
func asked(f *fakeEtcd) (at []time.Duration, ids []int64) {
	at, these := got[*pb.LeaseGrantRequest](f)
	for _, one := range these {
		ids = append(ids, one.GetID())
	}
	return at, ids
}

// grants lets the grants meet these.
func (f *fakeEtcd) grants(these meets) {
	f.meetsInTurn(these, func(request any) bool {
		_, ok := request.(*pb.LeaseGrantRequest)
		return ok
	})
}

func TestGrant(t *testing.T) {
	for name, c := range map[string]struct {
		grants meets
		asks   []int64            // the IDs that are asked for
		lease  clientv3.LeaseID   // the one that is granted; zero where none is
		strays []clientv3.LeaseID // what may be there besides
		is     error              // of the error
		took   time.Duration
	}{
		"a lease is granted": {asks: []int64{1}, lease: 1},
		"leases that exist already are passed over, and are strays": {
			grants: meets{fails(rpctypes.ErrGRPCLeaseExist), fails(rpctypes.ErrGRPCLeaseExist)},
			asks:   []int64{1, 2, 3}, lease: 3, strays: []clientv3.LeaseID{1, 2},
		},
		"what has no answer is asked for again under another ID": {
			grants: meets{takes(never)},
			asks:   []int64{1, 2}, lease: 2, strays: []clientv3.LeaseID{1}, took: askAgain,
		},
		"the first answer counts": {
			grants: meets{takes(askAgain + 10*time.Millisecond), takes(never)},
			asks:   []int64{1, 2}, lease: 1, strays: []clientv3.LeaseID{2}, took: askAgain + 10*time.Millisecond,
		},
		"what is refused is no stray": {
			grants: meets{fails(rpctypes.ErrGRPCPermissionDenied)},
			asks:   []int64{1}, is: rpctypes.ErrPermissionDenied,
		},
		"but one that a full disk refuses": {
			grants: meets{fails(rpctypes.ErrGRPCNoSpace)},
			asks:   []int64{1}, strays: []clientv3.LeaseID{1}, is: rpctypes.ErrNoSpace,
		},
		"and one whose answer is lost": {
			grants: meets{fails(status.Error(codes.Unavailable, "gone away"))},
			asks:   []int64{1}, strays: []clientv3.LeaseID{1},
		},
		"and all that have none in time": { // three times: by then etcd answers others, so that it is a matter of waiting
			grants: meets{takes(never), takes(never), takes(never)},
			asks:   []int64{1, 2, 3}, strays: []clientv3.LeaseID{1, 2, 3}, is: context.DeadlineExceeded, took: usual.Call,
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				user := f.user(t, usual)
				f.grants(c.grants)
				lease, strays, err := user.Grant(t.Context(), testTTL, ids())
				require.Equal(t, c.took, f.since())
				require.ElementsMatch(t, c.strays, strays)
				if c.lease != 0 {
					require.NoError(t, err)
					require.Equal(t, c.lease, lease.ID)
					require.Equal(t, testTTL, lease.TTL)
				} else {
					require.Error(t, err)
					require.Nil(t, lease)
				}
				if c.is != nil {
					require.ErrorIs(t, err, c.is)
				}
				_, asks := asked(f)
				require.Equal(t, c.asks, asks)
			})
		})
	}
}

func TestAGrantThatWasSentIsWaitedForAlthoughItsContextIsDone(t *testing.T) {
	for name, c := range map[string]struct {
		takes   time.Duration
		granted bool
		call    time.Duration // its bound
		returns time.Duration
	}{
		"until its answer":                         {takes: 2 * time.Second, granted: true, call: usual.Call, returns: 2 * time.Second},
		"or until its bound":                       {takes: never, call: 2 * time.Second, returns: 2 * time.Second},
		"which it has also where others have none": {takes: never, returns: askAgain/2 + outlastLeast},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				bounds := usual
				bounds.Call = c.call
				user := f.user(t, bounds)
				f.grants(meets{takes(c.takes)})
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				time.AfterFunc(askAgain/2, cancel)
				lease, strays, err := user.Grant(ctx, testTTL, ids())
				require.Equal(t, c.returns, f.since())
				if c.granted {
					require.NoError(t, err)
					require.EqualValues(t, 1, lease.ID)
				} else {
					require.Error(t, err)
					require.Equal(t, []clientv3.LeaseID{1}, strays)
				}
			})
		})
	}
}

func TestAGrantThatWaitsForAConnectionEndsWithItsContext(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		user := f.user(t, boundless)
		f.refuse(errors.New("connection refused"))
		f.hangUp()
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(askAgain/2, cancel)
		_, _, err := user.Grant(ctx, testTTL, ids())
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, askAgain/2, f.since())
		_, asks := asked(f)
		require.Empty(t, asks)
	})
}

func TestAGrantNeedsNoDeadline(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		lease, _, err := f.user(t, boundless).Grant(context.Background(), testTTL, ids())
		require.NoError(t, err)
		require.EqualValues(t, 1, lease.ID)
	})
}

func TestAGrantWhoseLinkIsReplacedIsMadeOnTheNextUnderAnotherID(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		user := f.user(t, usual)
		f.deafen()
		lease, strays, err := user.Grant(t.Context(), testTTL, ids())
		require.NoError(t, err)
		require.Equal(t, usual.Patience+spareAfterLeast, f.since())
		_, asks := asked(f)
		require.Equal(t, []int64{int64(lease.ID)}, asks)
		require.NotEmpty(t, strays)
		require.NotContains(t, strays, lease.ID)
		require.Len(t, strays, int(lease.ID)-1, "what was asked for over the old link may come yet")
	})
}
