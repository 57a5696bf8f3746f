package stream

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/discov-go/discov/internal/bubble"
	"github.com/discov-go/discov/internal/etcd"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestEventsGoToTheWatchOfTheirKey(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var last *watched
		ids := make(chan int64, 3)
		ws := newWatches(t, &watchServer{serve: func(s *watched) error {
			last = s
			for {
				one, err := s.creation()
				if err != nil {
					return err
				}
				if one.GetStartRevision() != testRev {
					return fmt.Errorf("from revision %d", one.GetStartRevision())
				}
				ids <- one.GetWatchId()
				if err := s.created(one.GetWatchId()); err != nil {
					return err
				}
			}
		}}, 0)
		a, _ := ws.listen("a")
		b, _ := ws.listen("b")
		settle()
		idOfA, idOfB := <-ids, <-ids
		require.NoError(t, last.put(idOfB, "b", "1"))
		require.NoError(t, last.put(idOfA, "a", "2"))
		require.NoError(t, last.put(idOfB, "b", "3"))
		require.NoError(t, last.remove(idOfB, "b"))
		require.NoError(t, last.put(idOfB+99, "a", "4"), "of no watch")
		require.NoError(t, last.put(idOfA, "c", "5"), "of no key")
		settle()
		a.requireTold(t, "2")
		b.requireTold(t, "1", "3", "")
	})
}

func TestAWatchWhoseIDIsGivenToAnotherEnds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ws := newWatches(t, &watchServer{serve: proxied([]int64{0, 0}, func(*watched) error { return nil })}, 0)
		first, _ := ws.listen("a")
		second, _ := ws.listen("b")
		time.Sleep(2 * gather)
		settle()
		require.ErrorIs(t, first.requireEnded(t), etcd.ErrStreamEnded)
		second.requireTold(t)
	})
}

// proxied is etcd's grpc-proxy: it counts the watches of a stream from zero on, and tells that they are created in the
// order that it is given, once all have been asked for.
func proxied(order []int64, then func(s *watched) error) func(*watched) error {
	return func(s *watched) error {
		for range order {
			if _, err := s.creation(); err != nil {
				return err
			}
		}
		for _, id := range order {
			if err := s.created(id); err != nil {
				return err
			}
		}
		if err := then(s); err != nil {
			return err
		}
		return s.drain()
	}
}

func TestEventsReachTheirKeyWhereWatchesAreCreatedInAnotherOrder(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ids := []int64{0, 1, 2, 3, 4, 5, 6, 7}
		order := slices.Clone(ids)
		shuffle(order)
		ws := newWatches(t, &watchServer{serve: proxied(order, func(s *watched) error {
			shuffle(order)
			for _, id := range order {
				if err := s.put(id, fmt.Sprint(id), fmt.Sprint("v", id)); err != nil {
					return err
				}
			}
			return nil
		})}, 0)
		var all []*listener
		for _, id := range ids {
			l, _ := ws.listen(fmt.Sprint(id))
			all = append(all, l)
		}
		settle()
		for id, l := range all {
			l.requireTold(t, fmt.Sprint("v", id))
		}
	})
}

func TestEventsReachTheirKeyWhateverTheServersIDs(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		// No rule of any server's: 3 is b's, which nobody could know before its event, and 9 is c's.
		step := make(chan struct{})
		ws := newWatches(t, &watchServer{serve: func(s *watched) error {
			for range 3 {
				if _, err := s.creation(); err != nil {
					return err
				}
			}
			for _, answer := range []func() error{
				func() error { return s.created(3) },
				func() error { return s.put(3, "b", "1") }, // while a and c are not created yet
				func() error { return s.created(9) },
				func() error { return s.put(9, "c", "2") },
				func() error { return s.created(4) },
				func() error { return s.put(4, "a", "3") },
				func() error { return s.put(3, "b", "4") },
				func() error { return s.put(9, "c", "5") },
			} {
				if err := answer(); err != nil {
					return err
				}
				<-step
			}
			return s.drain()
		}}, 0)
		a, _ := ws.listen("a")
		b, _ := ws.listen("b")
		c, _ := ws.listen("c")
		for range 8 {
			settle()
			step <- struct{}{}
		}
		settle()
		a.requireTold(t, "3")
		b.requireTold(t, "1", "4")
		c.requireTold(t, "2", "5")
	})
}

func TestAWatchThatIsClosedTakesNoOtherAlongWhereTheyAreCreatedInAnotherOrder(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ws := newWatches(t, &watchServer{serve: proxied([]int64{2, 0, 1}, func(s *watched) error {
			r, err := s.Recv()
			if err != nil {
				return err
			}
			ids := []string{"a", "b", "c"}
			for id, key := range ids {
				if int64(id) == r.GetCancelRequest().GetWatchId() {
					err = s.send(&pb.WatchResponse{WatchId: int64(id), Canceled: true})
				} else {
					err = s.put(int64(id), key, "still")
				}
				if err != nil {
					return err
				}
			}
			return nil
		})}, 0)
		a, cancelA := ws.listen("a")
		b, _ := ws.listen("b")
		c, _ := ws.listen("c")
		settle()
		cancelA()
		settle()
		a.requireTold(t)
		b.requireTold(t, "still")
		c.requireTold(t, "still")
	})
}

func TestAWatchThatIsCancelledIsToldWhyAndTheOthersGoOn(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(s *watched, id int64) error
		is     error
		says   string
	}{
		"denied": {func(s *watched, id int64) error {
			return s.refuse(id, "rpc error: code = PermissionDenied desc = etcdserver: permission denied")
		}, rpctypes.ErrPermissionDenied, ""},
		"denied by a proxy, without an ID": {func(s *watched, _ int64) error {
			return s.refuse(-1, "etcdserver: permission denied")
		}, rpctypes.ErrPermissionDenied, ""},
		"compacted": {func(s *watched, id int64) error {
			if err := s.created(id); err != nil {
				return err
			}
			return s.send(&pb.WatchResponse{WatchId: id, Canceled: true, CompactRevision: testRev + 5})
		}, rpctypes.ErrCompacted, ""},
		"cancelled for a reason": {func(s *watched, id int64) error {
			if err := s.created(id); err != nil {
				return err
			}
			return s.send(&pb.WatchResponse{WatchId: id, Canceled: true, CancelReason: "the moon is full"})
		}, nil, "the moon is full"},
		"cancelled without a reason": {func(s *watched, id int64) error {
			if err := s.created(id); err != nil {
				return err
			}
			return s.send(&pb.WatchResponse{WatchId: id, Canceled: true})
		}, nil, "cancelled"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				proceed := make(chan struct{})
				ws := newWatches(t, &watchServer{serve: func(s *watched) error {
					one, err := s.creation()
					if err != nil {
						return err
					}
					if err := c.answer(s, one.GetWatchId()); err != nil {
						return err
					}
					<-proceed
					if one, err = s.creation(); err != nil {
						return err
					}
					if err := s.created(one.GetWatchId()); err != nil {
						return err
					}
					if err := s.put(one.GetWatchId(), "b", "1"); err != nil {
						return err
					}
					return s.drain()
				}}, 0)
				a, cancelA := ws.listen("a")
				b, _ := ws.listen("b")
				settle()
				err := a.requireEnded(t)
				if c.is != nil {
					require.ErrorIs(t, err, c.is)
				}
				require.ErrorContains(t, err, c.says)
				close(proceed)
				settle()
				b.requireTold(t, "1")
				cancelA()
				settle()
				b.requireTold(t, "1")
			})
		})
	}
}

func TestTheLastCloseEndsTheStreamAndTheNextWatchOpensAnother(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		server := &watchServer{serve: likeEtcd}
		ws := newWatches(t, server, 0)
		for n := 1; n <= 3; n++ {
			a, cancelA := ws.listen("a")
			b, cancelB := ws.listen("b")
			settle()
			cancelA()
			cancelA()
			settle()
			opened, open, _ := server.streams()
			require.Equal(t, n, opened)
			require.Equal(t, 1, open, "there is another watch")
			a.requireTold(t, "hello a")
			b.requireTold(t, "hello b")
			cancelB()
			settle()
			_, open, _ = server.streams()
			require.Zero(t, open)
			b.requireTold(t, "hello b")
		}
	})
}

func TestAWatchThatIsClosedBeforeItIsCreatedIsCancelledThen(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		create, cancelled := make(chan struct{}), make(chan int64, 1)
		ws := newWatches(t, &watchServer{serve: func(s *watched) error {
			var ids []int64
			for range 2 {
				one, err := s.creation()
				if err != nil {
					return err
				}
				ids = append(ids, one.GetWatchId())
			}
			<-create
			for _, id := range ids {
				if err := s.created(id); err != nil {
					return err
				}
				if err := s.put(id, "a", "late"); err != nil {
					return err
				}
			}
			r, err := s.Recv()
			if err != nil {
				return err
			}
			cancelled <- r.GetCancelRequest().GetWatchId() - ids[0]
			return s.drain()
		}}, 0)
		a, cancelA := ws.listen("a")
		b, _ := ws.listen("b")
		settle()
		cancelA()
		close(create)
		settle()
		require.Zero(t, <-cancelled)
		told, ended, _ := a.heard()
		require.Empty(t, told)
		require.Empty(t, ended)
		b.requireTold(t)
	})
}

func TestAStreamThatEndsEndsAllItsWatches(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		server := &watchServer{serve: func(s *watched) error {
			for range 3 {
				if _, err := s.creation(); err != nil {
					return err
				}
			}
			if err := s.created(firstID); err != nil {
				return err
			}
			return status.Error(codes.Unavailable, "the proxy is tired")
		}}
		ws := newWatches(t, server, 0)
		a, _ := ws.listen("a")
		b, cancelB := ws.listen("b")
		cancelB()
		c, _ := ws.listen("c")
		settle()
		for _, l := range []*listener{a, c} {
			require.ErrorContains(t, l.requireEnded(t), "the proxy is tired")
		}
		b.requireTold(t)
		opened, open, _ := server.streams()
		require.Equal(t, 1, opened)
		require.Zero(t, open)
		ws.listen("a")
		settle()
		opened, open, _ = server.streams()
		require.Equal(t, 2, opened)
		require.Equal(t, 1, open)
	})
}

func TestALinkThatIsLeftEndsItsWatches(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ws := newWatches(t, &watchServer{serve: likeEtcd}, 0)
		a, _ := ws.listen("a")
		settle()
		ws.leave()
		ws.Wait()
		require.ErrorIs(t, a.requireEnded(t), context.Canceled)
		b, cancelB := ws.listen("b")
		settle()
		require.ErrorIs(t, b.requireEnded(t), context.Canceled)
		cancelB()
	})
}

func TestNothingIsToldOnceAWatchIsClosed(t *testing.T) {
	t.Parallel()
	ws := newWatches(t, &watchServer{serve: func(s *watched) error {
		var sending sync.WaitGroup
		defer sending.Wait()
		for {
			r, err := s.Recv()
			if err != nil {
				return err
			}
			one := r.GetCreateRequest()
			if one == nil {
				continue
			}
			if err := s.created(one.GetWatchId()); err != nil {
				return err
			}
			for range 50 {
				if err := s.put(one.GetWatchId(), string(one.GetKey()), "v"); err != nil {
					return err
				}
			}
		}
	}}, 0)
	stays, _ := ws.listen("stays")
	var running sync.WaitGroup
	var all []*listener
	for i := range 300 {
		l, cancel := ws.listen(fmt.Sprint(i))
		all = append(all, l)
		running.Go(func() {
			if i%3 > 0 {
				soon(t, 10*time.Second, func() bool { told, _, _ := l.heard(); return len(told) > 0 }, "it is told")
			}
			cancel()
		})
	}
	running.Wait()
	soon(t, 10*time.Second, func() bool { told, _, _ := stays.heard(); return len(told) == 50 }, "the other is told all")
	for _, l := range all {
		_, ended, late := l.heard()
		require.Zero(t, late)
		require.Empty(t, ended)
	}
}

func TestWatchesAreAskedForWithoutWaitingForTheOnesBefore(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const way = 300 * time.Millisecond
		ws := newWatches(t, &watchServer{serve: likeEtcd}, way)
		began := time.Now()
		var all []*listener
		for i := range 500 {
			l, _ := ws.listen(fmt.Sprint(i))
			all = append(all, l)
		}
		last := all[len(all)-1]
		soon(t, 3*2*way, func() bool { told, _, _ := last.heard(); return len(told) > 0 }, "the last one is told")
		for i, l := range all {
			l.requireTold(t, fmt.Sprint("hello ", i))
		}
		require.Nil(t, ws.cur.asked, "no memory of what is answered")
		require.False(t, ws.pulse.IsSilentSince(began.Add(2*way)))
	})
}

func TestWatchesOfABurstGoOutTogether(t *testing.T) {
	for name, tried := range map[string]struct {
		rate    int // in a second
		lasts   time.Duration
		after   int           // the rate for two seconds more
		longest time.Duration // that a watch waits
		packets int           // at most, and the first ones that did not wait
	}{
		"one that is soon over": {2 * burstRate, 300 * time.Millisecond, 0, 300*time.Millisecond + 2*gatherBurst, 1 + 2},
		"one that abates":       {2 * burstRate, 300 * time.Millisecond, burstRate / 4, 300*time.Millisecond + 3*gatherBurst, 250},
		"one that lasts":        {2 * burstRate, 20 * time.Second, 0, 2*gather + mostGathers*gatherBurst, 5 + 2},
		"many that are none":    {burstRate / 2, 2 * time.Second, 0, 2 * gather, 250},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				packets := map[time.Time]bool{}
				var longest time.Duration
				ws := newWatches(t, &watchServer{serve: func(s *watched) error {
					for {
						one, err := s.creation()
						if err != nil {
							return err
						}
						asked, err := time.Parse(time.RFC3339Nano, string(one.GetKey()))
						if err != nil {
							return err
						}
						mu.Lock()
						packets[time.Now()] = true
						longest = max(longest, time.Since(asked))
						mu.Unlock()
					}
				}}, 0)
				listen := func(rate int, lasts time.Duration) {
					for n := int(lasts.Seconds() * float64(rate)); n > 0; n-- {
						ws.listen(time.Now().Format(time.RFC3339Nano))
						time.Sleep(time.Second / time.Duration(rate))
					}
				}
				listen(tried.rate, tried.lasts)
				listen(tried.after, 2*time.Second)
				time.Sleep(2 * gatherBurst)
				mu.Lock()
				defer mu.Unlock()
				require.LessOrEqual(t, longest, tried.longest)
				require.LessOrEqual(t, len(packets), tried.packets)
				require.Empty(t, ws.cur.takeUnsent(), "none is left once it is over")
			})
		})
	}
}

// settle lets all that was asked for go out, and waits until all that comes of it has come.
func settle() {
	time.Sleep(gather)
	synctest.Wait()
}
