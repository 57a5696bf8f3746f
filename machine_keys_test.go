package discov

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The tests in this file run in virtual time, over a fake etcd.

func TestAStopInAnOutageTriesForOneTTLAndSaysByWhenTheKeyIsGone(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		f.down()
		began := time.Now()
		err := p.StopContext(t.Context())
		require.Equal(t, defaultTimeout, time.Since(began))
		var withdraw *WithdrawError
		require.ErrorAs(t, err, &withdraw)
		require.Equal(t, fakeKey, withdraw.Key)
		require.LessOrEqual(t, withdraw.Until, began.Add(defaultTTL))
		require.Equal(t, StateWithdrawing, p.Status().State)
		settle(defaultTTL)
		require.Equal(t, StateStopped, p.Status().State)
		require.ErrorAs(t, p.StopContext(t.Context()), &withdraw, "a later call has the same outcome")
		require.Equal(t, 1, f.releases)
		require.False(t, f.at(fakeKey).Exists(), "nobody renews it")
	})
}

func TestAPauseInAnOutageIsTriedUntilEtcdAnswersHoweverLate(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7), WithTTL(time.Hour))
		f.down()
		var withdraw *WithdrawError
		require.ErrorAs(t, p.PauseContext(t.Context()), &withdraw)
		settle(20 * time.Minute)
		require.True(t, f.at(fakeKey).Exists())
		f.back()
		settle(time.Second)
		require.False(t, f.at(fakeKey).Exists())
		require.Equal(t, StatePaused, p.Status().State)
		p.Stop()
	})
}

func TestAResumeBeforeTheRevokeIsConfirmedTakesANewLeaseFirst(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		was := p.Status().Lease
		f.meets(troubles{"revoke": {before: errReset}}.of)
		require.Error(t, p.PauseContext(t.Context()))
		require.True(t, f.at(fakeKey).Exists())
		require.NoError(t, p.ResumeContext(t.Context()))
		require.NotEqual(t, was, p.Status().Lease)
		require.Equal(t, p.Status().Lease, f.at(fakeKey).Lease)
		f.heal()
		settle(5 * time.Second)
		require.Equal(t, []clientv3.LeaseID{p.Status().Lease}, f.leaseIDs(), "the old one was revoked with the next renewal")
		p.Stop()
	})
}

func TestAnotherInstanceKeepsTheKeyThatItTookAndAFreeOneIsTakenBackAtAPace(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		f.lend(99)
		writes := len(f.requests("put"))
		for range 40 {
			f.set(fakeKey, "another", 99)
			settle(time.Second)
			require.Equal(t, StateConflict, p.Status().State)
			require.ErrorIs(t, p.Status().Err, ErrConflict)
			f.remove(fakeKey)
			settle(500 * time.Millisecond)
		}
		require.LessOrEqual(t, len(f.requests("put"))-writes, 10, "in a minute: after 0, 1, 3, 7, 15 s, and every 10 s then")
		settle(fillMost)
		require.Equal(t, StatePublished, p.Status().State)
		f.set(fakeKey, "another", 99)
		synctest.Wait()
		require.ErrorIs(t, p.Update(t.Context(), "v1"), ErrConflict)
		require.NoError(t, p.ResumeContext(t.Context()), "a Resume is somebody's decision")
		require.Equal(t, "v1", f.at(fakeKey).Value)
		f.set(fakeKey, "another", 99)
		synctest.Wait()
		p.Stop()
		require.Equal(t, "another", f.at(fakeKey).Value)
	})
}

func TestAKeyThatIsDeletedInALoopIsMendedWithPauses(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		for range 60_000 {
			f.remove(fakeKey)
			settle(time.Millisecond)
		}
		require.Less(t, len(f.requests("put")), 150, "in a minute")
		settle(time.Second)
		require.True(t, f.at(fakeKey).Exists())
		p.Stop()
	})
}

func TestARevisionThatWentBackIsADoubt(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		f.rev = 1000
		p := f.published(WithId(7))
		f.mu.Lock() // restored to a time without the key, and the watch sleeps on at a revision that is far ahead
		f.rev = 10
		delete(f.keys, fakeKey)
		clear(f.watches)
		f.mu.Unlock()
		settle(defaultTTL / 3)
		require.True(t, f.at(fakeKey).Exists())
		p.Stop()
	})
}

func TestTheWaysInTheDocsAreThoseInTheCode(t *testing.T) {
	for _, file := range []string{"publisher.go"} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		drawn := map[string][]string{}
		for _, way := range regexp.MustCompile(`(?m)^(?://\t)?([a-z]+) +→ ([a-z, ]+)$`).FindAllStringSubmatch(string(text), -1) {
			drawn[way[1]] = strings.Split(way[2], ", ")
		}
		coded := map[string][]string{}
		for from, tos := range transitions {
			for _, to := range tos {
				coded[from.String()] = append(coded[from.String()], to.String())
			}
		}
		require.Equal(t, coded, drawn, file)
	}
}

func TestAKeyThatAnotherTakesAndLeavesInAMomentIsTakenBackAtAPace(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		synctest.Wait() // it is watched
		f.lend(99)
		for range 10 {
			f.mu.Lock() // so that both are seen at once
			f.setLocked(fakeKey, "another", 99)
			f.removeLocked(fakeKey)
			f.mu.Unlock()
			settle(time.Second)
		}
		require.Len(t, f.requests("put"), 1+4, "after 0, 1, 3, 7 s")
		require.Equal(t, StateConflict, p.Status().State)
		require.ErrorContains(t, p.Status().Err, "it is free, and taken again at")
		settle(fillMost)
		require.True(t, f.at(fakeKey).Exists())
		require.Equal(t, StatePublished, p.Status().State)
		f.expire(99)
		p.Stop()
	})
}

func TestAWatchFromBeforeAWipeIsNotHeardAfterIt(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fakeEtcd) {
		p := f.published(WithId(7))
		f.meets(func(string) trouble { return trouble{delay: 4 * time.Second} }) // etcd hangs
		require.Error(t, p.Update(deadline(t, time.Second), "v1"))
		f.lend(99)
		for range 5 {
			f.set(fakeKey, "another's", 99) // of which the watch hears
		}
		settle(time.Second)
		f.down()
		settle(time.Second)
		f.wipe()
		f.heal()
		f.back()
		settle(10 * time.Minute)
		require.Equal(t, StatePublished, p.Status().State)
		require.Equal(t, "v1", f.at(fakeKey).Value)
		p.Stop()
	})
}
