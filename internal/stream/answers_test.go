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
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestAnswersReachTheLeasesThatTheyName(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const all = 30
		seconds := func(id int64) int64 { return []int64{0, id, 100 + id}[id%3] } // some are gone, each other has its own
		server := &leaseServer{serve: func(s *leaseStream) error {
			for n := 1; ; n = all - 1 { // the first goes out alone
				ids, err := s.take(n)
				if err != nil {
					return err
				}
				shuffle(ids) // as etcd's grpc-proxy does
				for _, id := range ids {
					if err := s.renew(id, seconds(id)); err != nil {
						return err
					}
				}
			}
		}}
		r := newRenewals(t, server, 0)
		leases := grant(all)
		time.Sleep(time.Second)
		sent := time.Now()
		r.Ask(leases)
		r.awaitIdle(t, 50*time.Millisecond)
		for _, lease := range leases {
			ttl := time.Duration(seconds(int64(lease.ID))) * time.Second
			if ttl == 0 {
				require.ErrorIsf(t, lease.Take(), rpctypes.ErrLeaseNotFound, "lease %d", lease.ID)
				continue
			}
			require.NoErrorf(t, lease.Take(), "lease %d", lease.ID)
			require.Equalf(t, ttl, lease.Until().Sub(sent), "lease %d", lease.ID)
		}
	})
}

func TestAnAnswerThatNobodyWaitsForChangesNothing(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var first, second *leaseStream
		server := &leaseServer{}
		server.serve = func(s *leaseStream) error {
			if s.n == 1 {
				first = s
			} else {
				second = s
			}
			return s.hang()
		}
		r := newRenewals(t, server, 0)
		leases := grant(3)
		asked := leases[0].Until()
		r.Ask(leases[:2])
		soon(t, time.Second, func() bool { return len(server.requests()) == 2 }, "each is asked for over a stream")
		one, two := server.requests()[0].id, server.requests()[1].id
		require.NoError(t, first.renew(999, 0))
		require.NoError(t, first.renew(3, 0), "nobody asked for it")
		require.NoError(t, first.renew(two, 0), "it was asked for over the other stream")
		synctest.Wait()
		for _, lease := range leases {
			require.NoError(t, lease.Take())
			require.Equal(t, asked, lease.Until())
		}
		require.False(t, r.Idle())
		require.NoError(t, first.renew(one, 7))
		require.NoError(t, first.renew(one, 0), "twice")
		require.NoError(t, second.renew(two, 8))
		synctest.Wait()
		require.True(t, r.Idle())
		require.Equal(t, 7*time.Second, leases[one-1].Until().Sub(server.requests(one)[0].at))
		require.Equal(t, 8*time.Second, leases[two-1].Until().Sub(server.requests(two)[0].at))
		require.NoError(t, leases[one-1].Take())
	})
}

// askFor asks again and again, whether there are answers or not.
func askFor(r *renewals, leases []*etcd.Keepalive, d time.Duration) {
	for began := time.Now(); time.Since(began) < d; time.Sleep(200 * time.Millisecond) {
		r.Ask(leases)
	}
}

// freezing is etcd that answers n requests, and no more until it is thawed.
func freezing(n int64, thawed <-chan struct{}) func(*leaseStream) error {
	var answered atomic.Int64
	return func(s *leaseStream) error {
		held := make(chan int64, 1000)
		defer close(held)
		go func() {
			for id := range held {
				if answered.Add(1) > n && !s.await(thawed) {
					return
				}
				_ = s.renew(id, testSeconds) // the stream may have ended
			}
		}()
		for {
			id, err := s.next()
			if err != nil {
				return err
			}
			held <- id
		}
	}
}

func TestAFrozenEtcdHasOneRequestOfEachLease(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		thawed := make(chan struct{})
		server := &leaseServer{serve: freezing(0, thawed)}
		r := newRenewals(t, server, 0)
		leases := grant(300)
		askFor(r, leases, 8*time.Second)
		server.requireOnceEach(t, leases)
		began := time.Now()
		close(thawed)
		r.awaitIdle(t, 50*time.Millisecond)
		server.requireOnceEach(t, leases)
		for _, lease := range leases {
			require.NoError(t, lease.Take())
			require.Greater(t, lease.Gone().Sub(began), testTTL-time.Second)
		}
	})
}

func TestAnEtcdThatFreezesWhileItAnswersHasOneRequestOfEachLease(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		thawed := make(chan struct{})
		server := &leaseServer{serve: freezing(100, thawed)}
		r := newRenewals(t, server, 0)
		leases := grant(300)
		r.Ask(leases)
		synctest.Wait()
		askFor(r, leases[100:], 8*time.Second)
		server.requireOnceEach(t, leases)
		close(thawed)
		r.awaitIdle(t, 50*time.Millisecond)
		server.requireOnceEach(t, leases)
	})
}

func TestARequestThatIsStuckIsMadeAgainOverAnotherStream(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		server := &leaseServer{serve: func(s *leaseStream) error {
			if s.n == 1 {
				return s.hang()
			}
			return s.renewAll(10 * time.Millisecond)
		}}
		r := newRenewals(t, server, 0)
		leases := grant(5)
		began := time.Now()
		askFor(r, leases, 2*time.Second)
		r.awaitIdle(t, 50*time.Millisecond)
		requireRenewed(t, began, leases...)
		for _, lease := range leases[1:] {
			require.Len(t, server.requests(int64(lease.ID)), 10, "they are renewed each time")
		}
		stuck := server.requests(1)
		require.Equal(t, 1, stuck[0].stream)
		require.NotEqual(t, 1, stuck[1].stream)
		require.InDelta(t, askAgain, stuck[1].at.Sub(stuck[0].at), float64(2*busyAfter))
	})
}

func TestARequestThatIsStuckAgainAndAgainIsMadeLessOften(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		server := &leaseServer{serve: func(s *leaseStream) error {
			for {
				id, err := s.next()
				if err != nil {
					return err
				}
				if id == 1 {
					return s.hang()
				}
				if err := s.renew(id, testSeconds); err != nil {
					return err
				}
			}
		}}
		r := newRenewals(t, server, 0)
		leases := grant(2)
		askFor(r, leases, time.Minute)
		requests := server.requests(1)
		require.Greater(t, len(requests), 4)
		for i, one := range requests[1:] {
			pause := one.at.Sub(requests[i].at)
			require.GreaterOrEqual(t, pause, askAgain<<min(i, maxRepeats), "before request %d", i+1)
		}
	})
}

func TestWhatIsForgottenBeforeItIsSentIsNeverSent(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		thawed := make(chan struct{})
		server := &leaseServer{serve: func(s *leaseStream) error {
			if !s.await(thawed) {
				return s.Context().Err()
			}
			return s.renewAll(0)
		}}
		r := newRenewals(t, server, 0)
		leases := grant(6)
		r.Ask(leases)
		synctest.Wait()
		for range 2 {
			r.Forget(leases[1])
		}
		r.Forget(etcd.NewKeepalive(clientv3.LeaseID(3), testTTL, time.Now())) // another user's
		r.Forget(leases[5])
		close(thawed)
		r.awaitIdle(t, 50*time.Millisecond)
		synctest.Wait()
		require.Len(t, server.requests(), 4)
		require.Empty(t, server.requests(2))
		require.Len(t, server.requests(3), 1)
		require.Empty(t, server.requests(6))
	})
}

func TestTheAnswerToWhatWasForgottenIsNobodys(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		server := &leaseServer{serve: func(s *leaseStream) error { return s.renewAll(20 * time.Millisecond) }}
		r := newRenewals(t, server, 0)
		leases := grant(3)
		until := leases[0].Until()
		time.Sleep(time.Second)
		r.Ask(leases)
		synctest.Wait()
		require.Len(t, server.requests(1), 1, "it was sent")
		r.Forget(leases[0])
		r.awaitIdle(t, 100*time.Millisecond)
		require.Equal(t, until, leases[0].Until())
		requireRenewed(t, time.Now().Add(-time.Second), leases[1:]...)
	})
}

func TestRenewWaitsForTheAnswer(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		server := &leaseServer{serve: func(s *leaseStream) error {
			for {
				id, err := s.next()
				if err != nil {
					return err
				}
				time.Sleep(20 * time.Millisecond)
				if err := s.renew(id, id%2); err != nil {
					return err
				}
			}
		}}
		r := newRenewals(t, server, 0)
		leases := grant(2)
		r.Ask(leases[:1])
		require.NoError(t, r.Renew(t.Context(), leases[0]))
		require.Len(t, server.requests(), 1, "it waits for the answer that is under way")
		require.ErrorIs(t, r.Renew(t.Context(), leases[1]), rpctypes.ErrLeaseNotFound)
		require.ErrorIs(t, leases[1].Take(), rpctypes.ErrLeaseNotFound)
	})
}

func TestRenewThatHasNoAnswerEndsWithItsContext(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := newRenewals(t, &leaseServer{serve: (*leaseStream).hang}, 0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.Equal(t, context.DeadlineExceeded, r.Renew(ctx, grant(1)[0]))
	})
}

func TestRenewTellsWhyItsStreamEnded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := newRenewals(t, &leaseServer{serve: func(*leaseStream) error {
			return status.Error(codes.Unavailable, "the proxy is tired")
		}}, 0)
		lease := grant(1)[0]
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := r.Renew(ctx, lease)
		require.ErrorIs(t, err, etcd.ErrStreamEnded)
		require.ErrorContains(t, err, "the proxy is tired")
		require.NoError(t, lease.Take(), "it is asked for again")
		require.False(t, r.Idle())
	})
}

func TestAStreamThatIsNotNeededAnyMoreIsNoReason(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		began := time.Now()
		isSlow := func() bool { return time.Since(began) < 2*busyAfter }
		hangs := func(id int64) bool { return id == 2 && time.Since(began) > streamsKept }
		server := &leaseServer{serve: func(s *leaseStream) error {
			for {
				id, err := s.next()
				if err != nil {
					return err
				}
				if hangs(id) {
					return s.hang()
				}
				if isSlow() {
					time.Sleep(3 * busyAfter / 2) // the others get streams of their own
				}
				if err := s.renew(id, testSeconds); err != nil {
					return err
				}
			}
		}}
		r := newRenewals(t, server, 0)
		leases := grant(4)
		r.Ask(leases)
		r.awaitIdle(t, time.Second)
		for range 8 { // etcd is quick again
			r.Ask(leases)
			r.awaitIdle(t, time.Second)
		}
		time.Sleep(streamsKept)
		ctx, cancel := context.WithTimeout(t.Context(), busyAfter/2)
		defer cancel()
		r.Ask(leases)
		require.Equal(t, context.DeadlineExceeded, r.Renew(ctx, leases[1]))
		synctest.Wait()
		opened, open, _ := server.streams()
		require.Less(t, open, opened, "those that had nothing to do were ended")
	})
}

func TestAStreamThatEndsWithNothingToDoIsNotOpenedAgain(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		server := &leaseServer{serve: func(s *leaseStream) error {
			id, err := s.next()
			if err == nil {
				err = s.renew(id, testSeconds)
			}
			return err // and ends
		}}
		r := newRenewals(t, server, 0)
		r.Ask(grant(1))
		time.Sleep(time.Minute)
		synctest.Wait()
		opened, _, _ := server.streams()
		require.Equal(t, 1, opened)
		r.Ask(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		opened, _, _ = server.streams()
		require.Equal(t, 1, opened)
	})
}
