package discov_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Calls in the middle of a fault.

const (
	outageTTL     = 4 * time.Second
	outageTimeout = time.Second
)

// eachOutage runs do in the middle of each outage, a short and a long one, and then after, once it is over.
func eachOutage(t *testing.T, do func(*scene, *instance), after func(s *scene, pub *instance, ended time.Time, o outage, long bool)) {
	t.Parallel()
	for name, o := range outages {
		for _, long := range []bool{false, true} {
			length := "shorter than the TTL"
			if long {
				length = "longer than the TTL"
			}
			t.Run(name+", "+length, func(t *testing.T) {
				t.Parallel()
				s := o.on(t)
				pub := s.publish("a:1", append(withID(outageTTL), discov.WithTimeout(outageTimeout))...)
				o.begin(s)
				began := s.begin("the outage begins")
				time.Sleep(200 * time.Millisecond)
				do(s, pub)
				if long {
					time.Sleep(outageTTL + 2*expiryLag - time.Since(began))
				}
				o.end(s)
				after(s, pub, s.begin("the outage is over, after %v", time.Since(began)), o, long)
			})
		}
	}
}

// requireUnconfirmed demands that the call ends in time and says that etcd has not confirmed it.
func requireUnconfirmed(s *scene, pub *instance, call func(context.Context) error) {
	s.t.Helper()
	until := pub.Status().Until
	err := pub.in(outageTimeout, call)
	var withdraw *discov.WithdrawError
	require.ErrorAs(s.t, err, &withdraw)
	require.ErrorIs(s.t, err, context.DeadlineExceeded)
	require.WithinDuration(s.t, until, withdraw.Until, 2*time.Second)
	require.False(s.t, pub.Status().Until.IsZero())
	require.Equal(s.t, prefix+"/7", withdraw.Key)
	require.WithinRange(s.t, withdraw.Until, time.Now().Add(-outageTTL), time.Now().Add(outageTTL))
	require.Equal(s.t, discov.StateWithdrawing, pub.Status().State)
}

// requireStaysGone demands that the key is gone in time, and does not come back.
func requireStaysGone(s *scene, pub *instance, ended time.Time, within time.Duration) {
	s.t.Helper()
	s.figure("gone", s.requireGone(ended, within))
	known := s.History(pub.key())
	time.Sleep(1500 * time.Millisecond)
	s.requireGone(time.Now(), 0)
	for _, change := range s.History(pub.key())[len(known):] {
		require.True(s.t, change.Gone, "%v", change) // the observer's own watch may have told it late
	}
}

func TestAPauseInAnOutageIsBoundedAndTheKeyIsGoneWithinASecondOfItsEnd(t *testing.T) {
	eachOutage(t,
		func(s *scene, pub *instance) { requireUnconfirmed(s, pub, pub.PauseContext) },
		func(s *scene, pub *instance, ended time.Time, _ outage, _ bool) {
			requireStaysGone(s, pub, ended, atOnce)
			pub.requireState(discov.StatePaused)
			require.NoError(s.t, pub.resumeIn(outageTimeout))
			s.requireTrue(time.Now(), 0, pub)
		})
}

func TestAStopInAnOutageIsBoundedAndTheKeyIsGoneWithinASecondOfItsEndOrWithItsLease(t *testing.T) {
	eachOutage(t,
		func(s *scene, pub *instance) {
			requireUnconfirmed(s, pub, pub.StopContext)
			require.ErrorIs(s.t, pub.KeepAlive(), discov.ErrStopped)
			require.ErrorIs(s.t, pub.ResumeContext(s.t.Context()), discov.ErrStopped)
		},
		func(s *scene, pub *instance, ended time.Time, o outage, long bool) {
			within := atOnce
			if long && o.renews {
				within = outageTTL + restartLag
			}
			requireStaysGone(s, pub, ended, within)
			pub.requireState(discov.StateStopped)
			if !long {
				require.NoError(s.t, pub.StopContext(s.t.Context()), "it was withdrawn in time")
			}
			requireNoGoroutines(s.t)
		})
}

func TestAnUpdateInAnOutageIsBoundedAndTheLatestValueIsThereAtItsEnd(t *testing.T) {
	eachOutage(t,
		func(s *scene, pub *instance) {
			for _, value := range []string{"a:2", "a:3"} {
				err := pub.updateIn(outageTimeout, value)
				require.ErrorIs(s.t, err, context.DeadlineExceeded)
				require.ErrorContains(s.t, err, pub.key())
				require.Equal(s.t, value, pub.Status().Value)
			}
		},
		func(s *scene, pub *instance, ended time.Time, o outage, _ bool) {
			s.figure("updated", s.requireTrue(ended, atOnce, pub))
			time.Sleep(atOnce)
			kv, _ := s.KV(s.t, pub.key())
			require.Equal(s.t, "a:3", kv.Value)
			latest := ""
			for _, change := range s.History(pub.key()) {
				if !change.Gone {
					require.GreaterOrEqual(s.t, change.Value, latest, "an older value came after a newer one: %v", change)
					latest = change.Value
				}
				// Where there is nobody to send it to, the value between is not written.
				require.False(s.t, o.renews && change.Value == "a:2", "%v", change)
			}
		})
}

func TestAPauseAndAResumeInAnOutageEndInTheKeyBeingThere(t *testing.T) {
	eachOutage(t,
		func(s *scene, pub *instance) {
			for range 2 {
				ctx, cancel := context.WithTimeout(s.t.Context(), 300*time.Millisecond)
				require.Error(s.t, s.bounded(300*time.Millisecond, func() error { return pub.PauseContext(ctx) }))
				cancel()
				ctx, cancel = context.WithTimeout(s.t.Context(), 300*time.Millisecond)
				require.Error(s.t, s.bounded(300*time.Millisecond, func() error { return pub.ResumeContext(ctx) }))
				cancel()
			}
		},
		func(s *scene, pub *instance, ended time.Time, _ outage, _ bool) {
			s.figure("present", s.requireTrue(ended, atOnce, pub))
			time.Sleep(outageTTL + expiryLag)
			s.requireTrue(time.Now(), 0, pub)
			if absent, back := s.absence(pub, ended); absent > 0 {
				require.LessOrEqual(s.t, back.Sub(ended), atOnce+s.meter.allowance(ended, back))
			}
		})
}

func TestCallsAtTheInstantOfAFaultEndInWhatWasAskedForLast(t *testing.T) {
	t.Parallel()
	const within = 200 * time.Millisecond // etcd may tell a watch that has just begun 100 ms late
	s := onPath(t)
	pub := s.publish("a:0", discov.WithId(7), discov.WithTTL(5*time.Second), discov.WithTimeout(4*time.Second))
	faults := []struct {
		name string
		make func()
	}{
		{"deaf", s.path.DeafenCurrent},
		{"reset", s.path.Reset},
		{"wiped", s.server.Wipe},
		{"revoked", func() {
			if lease := pub.Status().Lease; lease != 0 {
				_, _ = s.server.Client(t).Revoke(t.Context(), lease)
			}
		}},
		{"deleted", func() { _, _ = s.server.Client(t).Delete(t.Context(), prefix+"/7") }},
		{"restarted", s.server.Restart},
	}
	for round, fault := range append(faults, faults...) {
		var calls sync.WaitGroup
		calls.Go(func() { _ = pub.pauseIn(4 * time.Second) })
		calls.Go(func() {
			_ = pub.updateIn(4*time.Second, "a:"+strconv.Itoa(round))
		})
		calls.Go(func() { _ = pub.resumeIn(4 * time.Second) })
		fault.make()
		s.begin("%s", fault.name)
		calls.Wait()
		if round%2 == 0 {
			require.NoError(t, pub.pauseIn(4*time.Second), fault.name)
			s.requireGone(time.Now(), within)
		}
		require.NoError(t, pub.resumeIn(4*time.Second), fault.name)
		s.requireTrue(time.Now(), within, pub)
	}
}

func TestAStormOfPausesAndResumesEndsAsTheLastOneSays(t *testing.T) {
	t.Parallel()
	const n = 100
	s := guarded(t, onPath, false, true, etcdtest.WithTokenTTL(time.Second))
	pubs := s.publishSeveral(n, discov.WithTTL(5*time.Second))
	var calls, slow atomic.Int64 // slow: by more than a machine with a lot to do explains
	var storm sync.WaitGroup
	end := time.Now().Add(4 * time.Second)
	for _, pub := range pubs {
		for range 2 {
			storm.Go(func() {
				for time.Now().Before(end) {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(50))*time.Millisecond)
					began := time.Now()
					switch rand.IntN(3) {
					case 0:
						_ = pub.PauseContext(ctx)
					case 1:
						_ = pub.ResumeContext(ctx)
					case 2:
						_ = pub.Update(ctx, fmt.Sprint(rand.Int()))
					}
					cancel()
					calls.Add(1)
					if time.Since(began) > 3*time.Second {
						slow.Add(1)
					}
				}
			})
		}
	}
	for range 8 {
		time.Sleep(400 * time.Millisecond)
		s.path.Reset()
	}
	storm.Wait()
	var there []*instance
	var last sync.WaitGroup
	for i, pub := range pubs {
		if i%2 == 1 {
			last.Go(func() { assert.NoError(t, pub.PauseContext(t.Context())) })
			continue
		}
		there = append(there, pub)
		last.Go(func() {
			assert.NoError(t, pub.ResumeContext(t.Context()))
			assert.NoError(t, pub.Update(t.Context(), "last"))
		})
	}
	last.Wait()
	t.Logf("figure: %d calls, %d of them late by 3 s; %d Authenticate", calls.Load(), slow.Load(), s.server.Requests()["Authenticate"])
	assert.Zero(t, slow.Load())
	s.requireTrue(time.Now(), 0, there...)
	etcdtest.RequireSoon(t, 3*time.Second, func() bool { return s.server.Watchers() == n/2 && s.server.OpenStreams("Watch") == 1 }, "watchers")
	time.Sleep(6 * time.Second)
	s.requireTrue(time.Now(), 0, there...)
}
