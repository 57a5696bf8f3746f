package stream

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/discov-go/discov/internal/bubble"
	"github.com/discov-go/discov/internal/etcd"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
)

func TestRenewalsOfASlowEtcdDoNotQueueUp(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const stall = 1500 * time.Millisecond
		server := &leaseServer{serve: func(s *leaseStream) error { return s.renewAll(stall) }}
		r := newRenewals(t, server, 0)
		leases := grant(10)
		for range 3 {
			server.forget()
			began := time.Now()
			r.Ask(leases)
			r.awaitIdle(t, 4*stall) // one after the other they take ten
			requireRenewed(t, began, leases...)
			server.requireOnceEach(t, leases)
		}
		_, _, most := server.streams()
		require.Greater(t, most, 1)
		require.LessOrEqual(t, most, mostStreams)
	})
}

func TestManyRenewalsThatWaitForTheirTurnAreMadeOnce(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		server := &leaseServer{serve: func(s *leaseStream) error { return s.renewAll(700 * time.Millisecond) }}
		r := newRenewals(t, server, 0)
		leases := grant(100)
		r.Ask(leases)
		r.awaitIdle(t, 10*time.Second)
		server.requireOnceEach(t, leases)
	})
}

func TestRenewalsOfAQuickEtcdShareAStream(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		server := &leaseServer{serve: func(s *leaseStream) error { return s.renewAll(time.Millisecond) }}
		r := newRenewals(t, server, 0)
		leases := grant(20)
		for range 3 {
			for i := range leases {
				r.Ask(leases[i : i+1])
			}
			r.awaitIdle(t, 50*time.Millisecond)
		}
		opened, _, _ := server.streams()
		require.Equal(t, 1, opened)
		require.Nil(t, r.queue, "no memory of what is answered")
		require.Nil(t, r.streams[0].sent)
	})
}

func TestTheStreamsOfASlowEtcdEndWhenItIsQuickAgain(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		stall := time.Second
		server := &leaseServer{serve: func(s *leaseStream) error {
			for {
				id, err := s.next()
				if err != nil {
					return err
				}
				time.Sleep(stall)
				if err := s.renew(id, testSeconds); err != nil {
					return err
				}
			}
		}}
		r := newRenewals(t, server, 0)
		leases := grant(8)
		r.Ask(leases)
		r.awaitIdle(t, 3*time.Second)
		synctest.Wait()
		_, _, most := server.streams()
		require.Equal(t, mostStreams, most)
		stall = time.Millisecond
		for range 8 {
			r.Ask(leases)
			r.awaitIdle(t, time.Second)
		}
		_, open, _ := server.streams()
		require.Equal(t, mostStreams, open, "it may be slow again")
		time.Sleep(streamsKept)
		for range 8 {
			r.Ask(leases)
			r.awaitIdle(t, time.Second)
		}
		synctest.Wait()
		_, open, _ = server.streams()
		require.Equal(t, 1, open)
	})
}

func TestStreamsThatEndUnheardArePacedForAllWhoAsk(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		server := &leaseServer{serve: func(*leaseStream) error { return rpctypes.ErrGRPCNoLeader }}
		r := newRenewals(t, server, 0)
		r.pulse.Expect(time.Second) // so that each request takes a stream of its own
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		failed := make(chan error, 20)
		for _, lease := range grant(cap(failed)) {
			go func() { failed <- r.Renew(ctx, lease) }()
		}
		for range cap(failed) {
			err := <-failed
			require.ErrorIs(t, err, etcd.ErrStreamEnded)
			require.ErrorIs(t, err, rpctypes.ErrNoLeader)
		}
		opened, _, _ := server.streams()
		require.LessOrEqual(t, opened, 8*12, "eight streams, a dozen times at most in three seconds")
	})
}

func TestAStreamThatWasHeardIsReplacedAtOnce(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		server := &leaseServer{serve: func(s *leaseStream) error {
			id, err := s.next()
			if err != nil {
				return err
			}
			if err := s.renew(id, testSeconds); err != nil {
				return err
			}
			if _, err := s.next(); err != nil {
				return err
			}
			return rpctypes.ErrGRPCNoLeader
		}}
		r := newRenewals(t, server, 0)
		began := time.Now()
		leases := grant(20)
		r.Ask(leases)
		r.awaitIdle(t, 10*time.Millisecond)
		requireRenewed(t, began, leases...)
	})
}

func TestALongWayTakesAFewRoundTripsForAllLeases(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const way = 300 * time.Millisecond
		server := &leaseServer{serve: func(s *leaseStream) error { return s.renewAll(0) }}
		r := newRenewals(t, server, way)
		leases := grant(200)
		r.Ask(leases)
		r.awaitIdle(t, 3*2*way) // the first of them connects
		for range 3 {
			began := time.Now()
			r.Ask(leases)
			r.awaitIdle(t, 2*2*way)
			requireRenewed(t, began, leases...)
		}
		require.Len(t, server.requests(), 4*len(leases))
	})
}

func TestManyLeasesOverAFollowerAreRenewedInTime(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		server := &leaseServer{serve: func(s *leaseStream) error { return s.renewAll(time.Millisecond) }} // it asks the leader
		r := newRenewals(t, server, 0)
		leases := grant(8000)
		began := time.Now()
		r.Ask(leases)
		r.awaitIdle(t, testTTL/3) // one stream takes 8 s
		requireRenewed(t, began, leases...)
		server.requireOnceEach(t, leases)
	})
}

func TestLargeNumbersGoOutInChunks(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const all = 2000
		held, release := make(chan int64, all), make(chan struct{})
		server := &leaseServer{serve: func(s *leaseStream) error {
			go func() {
				for range release {
					for len(held) > 0 {
						_ = s.renew(<-held, testSeconds)
					}
				}
			}()
			for {
				id, err := s.next()
				if err != nil {
					return err
				}
				held <- id
			}
		}}
		r := newRenewals(t, server, 0)
		r.Ask(grant(all))
		var chunks []int
		for !r.Idle() {
			synctest.Wait() // all has arrived that comes without an answer
			chunks = append(chunks, len(held))
			release <- struct{}{}
			synctest.Wait()
		}
		close(release)
		require.Equal(t, []int{1, chunk, chunk, chunk, all - 1 - 3*chunk}, chunks)
		opened, _, _ := server.streams()
		require.Equal(t, 1, opened)
	})
}

// countedConn counts the streams that are asked for.
type countedConn struct {
	grpc.ClientConnInterface
	opened atomic.Int32
}

func (c *countedConn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	c.opened.Add(1)
	return c.ClientConnInterface.NewStream(ctx, desc, method, opts...)
}

func TestALinkThatIsLeftOpensNoStream(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		server := &leaseServer{serve: func(s *leaseStream) error { return s.renewAll(0) }}
		cc := &countedConn{ClientConnInterface: serveLeases(t, server, 0)}
		r := connected(t, cc)
		leases := grant(3)
		r.Ask(leases[:1])
		synctest.Wait()
		r.leave()
		r.Wait()
		r.Ask(leases)
		require.Equal(t, context.Canceled, r.Renew(t.Context(), leases[1]))
		synctest.Wait()
		require.EqualValues(t, 1, cc.opened.Load())
	})
}
