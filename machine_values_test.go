package discov

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// The tests in this file run in virtual time, over a fake etcd.

func TestUpdatesOnAHealthyEtcdAreNotHeldBack(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		for i := range 50 {
			began := time.Now()
			require.NoError(t, p.Update(t.Context(), fmt.Sprint(i)))
			require.Less(t, time.Since(began), 10*time.Millisecond)
			time.Sleep(700 * time.Millisecond)
		}
		p.Stop()
	})
}

// TestAnOutageThatBeginsUnderAWriteKeepsItsValueBack: there was a connection when the value was taken.
func TestAnOutageThatBeginsUnderAWriteKeepsItsValueBack(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		before := f.at(fakeKey).Rev
		var once sync.Once
		f.meets(func(op string) trouble {
			if op == "put" {
				once.Do(f.downLocked)
			}
			return trouble{}
		})
		for _, value := range []string{"first", "second"} {
			ctx, cancel := context.WithTimeout(t.Context(), fakeCall/4)
			require.ErrorIs(t, p.Update(ctx, value), context.DeadlineExceeded)
			cancel()
		}
		f.back()
		require.NoError(t, p.Update(t.Context(), "second"))
		require.Equal(t, "second", f.at(fakeKey).Value)
		require.Equal(t, before+1, f.at(fakeKey).Rev, "the first value was written as well")
		p.Stop()
	})
}

func TestAValueThatIsTooLargeLeavesTheOneBeforeAndNoTakeover(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		f.tooLarge = "huge"
		p := f.published(WithId(7))
		require.ErrorIs(t, p.Update(t.Context(), "huge"), rpctypes.ErrRequestTooLarge)
		require.Equal(t, "v0", f.at(fakeKey).Value)
		p.Pause()
		require.NoError(t, p.ResumeContext(t.Context()))
		require.Equal(t, "v0", f.at(fakeKey).Value)
		f.lend(99)
		f.set(fakeKey, "another", 99)
		settle(time.Second)
		require.Equal(t, StateConflict, p.Status().State)
		require.Equal(t, "another", f.at(fakeKey).Value)
		p.Stop()
	})
}

func TestAValueThatIsTooLargeIsNoTroubleOfTheRegistration(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		f.tooLarge = "huge"
		log := &LogLines{}
		p := f.published(WithId(7), log.Option())
		log.Take()
		require.Error(t, p.Update(t.Context(), "huge"))
		require.NoError(t, p.Update(t.Context(), "v1"))
		settle(time.Hour)
		f.remove(fakeKey)
		settle(time.Second)
		lines := strings.Join(log.Take(), "\n")
		require.Equal(t, 1, strings.Count(lines, "discov: the latest value is refused"), lines)
		require.NotContains(t, lines, "not done yet")
		require.Contains(t, lines, "registered again")
		require.NotContains(t, lines, "after=1h", "the trouble began an hour later")
		p.Stop()
	})
}

func TestAFirstValueThatIsTooLargeIsNotSentAgainAndAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		f.tooLarge = "v0"
		p := f.publisher(WithId(7), WithBackgroundStart())
		require.NoError(t, p.KeepAlive())
		settle(10 * time.Minute)
		require.LessOrEqual(t, len(f.requests("put")), 12)
		require.ErrorIs(t, p.Status().Err, rpctypes.ErrRequestTooLarge)
		require.NoError(t, p.Update(t.Context(), "v1"), "another one is sent at once")
		require.Equal(t, "v1", f.at(fakeKey).Value)
		p.Stop()
	})
}

func TestAPausedPublisherWhoseConnectionBreaksAgainAndAgainAsksWithPauses(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		require.NoError(t, p.PauseContext(t.Context()))
		before := len(f.requests("leases"))
		for range 600 {
			f.mu.Lock()
			f.endWatchesLocked() // connections break
			f.mu.Unlock()
			settle(100 * time.Millisecond)
		}
		require.Less(t, len(f.requests("leases"))-before, 160, "in a minute")
		p.Stop()
	})
}

func TestAValueWhoseAnswerWasLostIsTheOneBeforeOneThatIsTooLarge(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		f.tooLarge = "huge"
		p := f.published(WithId(7))
		lost := false
		f.meets(func(op string) trouble {
			if op == "put" && !lost {
				lost = true
				return trouble{after: errReset}
			}
			return trouble{}
		})
		require.NoError(t, p.Update(t.Context(), "v1"))
		require.True(t, lost)
		require.ErrorIs(t, p.Update(t.Context(), "huge"), rpctypes.ErrRequestTooLarge)
		require.Equal(t, "v1", f.at(fakeKey).Value)
		p.Stop()
	})
}
