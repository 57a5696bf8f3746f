package discov_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
)

// A twin that crash-loops: another instance with the same id starts and ends again and again.

func TestATwinThatCrashesInALoopDelaysTheHealthyOneByTenSecondsAtMost(t *testing.T) {
	t.Parallel()
	const (
		times  = 6
		most   = 10 * time.Second
		halves = 500 * time.Millisecond // there for one, gone for one
	)
	// Each begins the life of a twin, and returns what ends it.
	for how, begin := range map[string]func(*scene) (end func()){
		"it stops": func(s *scene) func() {
			twin := s.publish("b:2", discov.WithId(7))
			return func() { require.NoError(s.t, twin.StopContext(s.t.Context())) }
		},
		"its lease ends": func(s *scene) func() {
			lease := s.putByAnother(prefix + "/7")
			return func() { s.revoke(lease) }
		},
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			s := onServer(t)
			healthy := s.publish("a:1", discov.WithId(7))
			for range times {
				end := begin(s)
				healthy.requireState(discov.StateConflict)
				time.Sleep(halves)
				end()
				time.Sleep(halves)
			}
			free := s.begin("the twin has crashed for the last time").Add(-halves)
			var told error
			etcdtest.RequireSoon(t, most+atOnce, func() bool {
				now := healthy.Status()
				if _, held := s.KV(t, healthy.key()); !held && errors.Is(now.Err, discov.ErrConflict) {
					told = now.Err
				}
				return now.State == discov.StatePublished
			}, "published again:\n%s", healthy)
			s.figure("the key was free", s.requireTrue(free, most+atOnce, healthy))
			require.Error(t, told, "nothing tells why the key is not taken:\n%s", healthy)
			require.ErrorContains(t, told, "free")
			at := clockIn(t, told.Error())
			t.Logf("%v", told)
			var taken time.Time
			for _, change := range s.History(healthy.key()) {
				if change.Value == "a:1" && !change.Gone {
					taken = change.Time
				}
			}
			require.InDelta(t, 0, taken.Sub(at).Seconds(), 2, "it is taken at another time than was told: %v", told)
			require.NoError(t, healthy.Status().Err)
		})
	}
}

// clockIn returns the time of day that ends the text, today's.
func clockIn(t *testing.T, text string) time.Time {
	t.Helper()
	fields := strings.Fields(text)
	now := time.Now()
	at, err := time.ParseInLocation(time.DateOnly+" "+time.TimeOnly, now.Format(time.DateOnly)+" "+fields[len(fields)-1], now.Location())
	require.NoError(t, err, "no time in %q", text)
	return at
}
