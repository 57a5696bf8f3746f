package stream

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/discov-go/discov/internal/bubble"
	"github.com/discov-go/discov/internal/etcd"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestALeaseThatIsDeniedIsToldSoAndItsNeighboursAreRenewed(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		isDenied := func(id int64) bool { return id%7 == 3 }
		server := &leaseServer{serve: deny(isDenied)}
		r := newRenewals(t, server, 0)
		leases := grant(30)
		began := time.Now()
		r.Ask(leases)
		r.awaitIdle(t, time.Second)
		for _, lease := range leases {
			if isDenied(int64(lease.ID)) {
				require.ErrorIsf(t, lease.Take(), rpctypes.ErrPermissionDenied, "lease %d", lease.ID)
			} else {
				requireRenewed(t, began, lease)
			}
		}
	})
}

// streamsOf returns the streams on which a lease was asked for, and the others that were asked for on these.
func (e *leaseServer) streamsOf(id int64) (streams []int, others []request) {
	for _, one := range e.requests(id) {
		streams = append(streams, one.stream)
		for _, other := range e.requests() {
			if other.stream == one.stream && other.id != id {
				others = append(others, other)
			}
		}
	}
	return streams, others
}

func TestALeaseThatWasDeniedIsAskedForOnAStreamOfItsOwn(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		server := &leaseServer{serve: deny(func(id int64) bool { return id == 2 })}
		r := newRenewals(t, server, 0)
		leases := grant(5)
		r.Ask(leases)
		r.awaitIdle(t, time.Second)
		opened, _, _ := server.streams()
		server.forget()
		for n := 1; n <= 3; n++ {
			began := time.Now()
			r.Ask(leases)
			r.awaitIdle(t, time.Second)
			require.ErrorIs(t, leases[1].Take(), rpctypes.ErrPermissionDenied, "again")
			requireRenewed(t, began, leases[0], leases[2], leases[3], leases[4])
			streams, others := server.streamsOf(2)
			require.Len(t, streams, n)
			require.Empty(t, others)
			now, _, _ := server.streams()
			require.Equal(t, opened+n, now, "those of the others stay")
		}
	})
}

func TestADeniedLeaseThatIsAllowedAgainIsRenewed(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var allowed atomic.Bool
		server := &leaseServer{serve: deny(func(id int64) bool { return id == 2 && !allowed.Load() })}
		r := newRenewals(t, server, 0)
		leases := grant(3)
		r.Ask(leases)
		r.awaitIdle(t, time.Second)
		require.ErrorIs(t, leases[1].Take(), rpctypes.ErrPermissionDenied)
		allowed.Store(true)
		for range 2 {
			began := time.Now()
			r.Ask(leases)
			r.awaitIdle(t, time.Second)
			requireRenewed(t, began, leases...)
		}
		synctest.Wait()
		_, open, _ := server.streams()
		require.Equal(t, 1, open, "the stream of its own has ended")
		streams, _ := server.streamsOf(2)
		_, others := server.streamsOf(1)
		require.Equal(t, streams[len(streams)-1], others[len(others)-1].stream, "it shares the others' again")
	})
}

func TestADeniedLeaseThatIsForgottenLeavesNoStream(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var silent atomic.Bool
		denies := deny(func(id int64) bool { return id == 2 })
		server := &leaseServer{serve: func(s *leaseStream) error {
			if silent.Load() {
				return s.hang()
			}
			return denies(s)
		}}
		r := newRenewals(t, server, 0)
		leases := grant(2)
		r.Ask(leases)
		r.awaitIdle(t, time.Second)
		silent.Store(true)
		r.Ask(leases[1:])
		synctest.Wait()
		_, open, _ := server.streams()
		require.Equal(t, 1, open)
		r.Forget(leases[1])
		synctest.Wait()
		_, open, _ = server.streams()
		require.Zero(t, open)
		require.True(t, r.Idle())
	})
}

func TestAStreamOfOneLeaseThatEndsForAnotherReasonTellsIt(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var down atomic.Bool
		denies := deny(func(id int64) bool { return id == 1 })
		server := &leaseServer{serve: func(s *leaseStream) error {
			if down.Load() {
				return status.Error(codes.Unavailable, "the proxy is tired")
			}
			return denies(s)
		}}
		r := newRenewals(t, server, 0)
		leases := grant(1)
		require.ErrorIs(t, r.Renew(t.Context(), leases[0]), rpctypes.ErrPermissionDenied)
		down.Store(true)
		err := r.Renew(t.Context(), leases[0])
		require.ErrorIs(t, err, etcd.ErrStreamEnded)
		require.ErrorContains(t, err, "the proxy is tired")
		require.True(t, r.Idle())
	})
}
