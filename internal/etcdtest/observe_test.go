package etcdtest_test

import (
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func del(t testing.TB, c *clientv3.Client, key string) {
	t.Helper()
	_, err := c.Delete(short(t), key)
	require.NoError(t, err)
}

// told is the history of a key in short: its values, and "-" where it went.
func told(o *etcdtest.Observer, key string) []string {
	var values []string
	for _, c := range o.History(key) {
		if c.Gone {
			values = append(values, "-")
		} else {
			values = append(values, c.Value)
		}
	}
	return values
}

func TestObserverKnowsAllThatHasHappenedWhenAsked(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	c := s.Client(t)
	put(t, c, "p/0", "before")
	o := etcdtest.Observe(t, s, "p/")
	require.Equal(t, []string{"before"}, told(o, "p/0"))
	want := []string{}
	for range 20 {
		put(t, c, "p/1", "v")
		del(t, c, "p/1")
		want = append(want, "v", "-")
		require.Equal(t, want, told(o, "p/1"))
	}
	put(t, c, "other", "v")
	require.Empty(t, told(o, "other"))

	changes := o.Changes()
	require.Len(t, changes, 1+len(want))
	require.Equal(t, "p/0", changes[0].Key)
	require.True(t, changes[len(changes)-1].Gone)
}

func TestObserverMissesNothingOfABusyKey(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	c := s.Client(t)
	o := etcdtest.Observe(t, s, "p/")
	var want []string
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		put(t, c, "p/1", "v")
		del(t, c, "p/1")
		want = append(want, "v", "-")
	}
	require.Equal(t, want, told(o, "p/1"))
}

func TestObserverReadsWhatIsThereNow(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	o := etcdtest.Observe(t, s, "p/")
	lease := grant(t, s.Client(t), 60)
	put(t, s.Client(t), "p/1", "v", clientv3.WithLease(lease.ID))
	kv, ok := o.KV(t, "p/1")
	require.True(t, ok)
	require.Equal(t, "v", kv.Value)
	require.EqualValues(t, lease.ID, kv.Lease)
	require.Equal(t, map[string]etcdtest.KV{"p/1": kv}, o.Keys(t))
	require.True(t, o.Present(t, "p/1"))
	require.False(t, o.Present(t, "p/2"))
	s.RequireLeases(t, 1)
}

func TestAbsencesBeginAtTheFirstSightAndMayBeOpen(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	c := s.Client(t)
	o := etcdtest.Observe(t, s, "p/")
	require.Empty(t, o.Absences("p/1"))
	put(t, c, "p/1", "v")
	o.RequireNeverAbsent(t, "p/1")
	put(t, c, "p/1", "w")
	o.RequireNeverAbsent(t, "p/1")
	del(t, c, "p/1")
	absences := o.Absences("p/1")
	require.Len(t, absences, 1)
	require.True(t, absences[0].To.IsZero())
	put(t, c, "p/1", "v")
	absences = o.Absences("p/1")
	require.Len(t, absences, 1)
	require.False(t, absences[0].To.Before(absences[0].From))
}

func TestRequireNeverAbsentFailsWithTheTimeline(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	msg := failure(t, func(t testing.TB) {
		o := etcdtest.Observe(t, s, "p/")
		put(t, s.Client(t), "p/1", "v")
		del(t, s.Client(t), "p/1")
		put(t, s.Client(t), "p/1", "w")
		o.RequireNeverAbsent(t, "p/1")
	})
	require.Contains(t, msg, "p/1 was [absent from")
	require.Contains(t, msg, `p/1 put "w"`)
	msg = failure(t, func(t testing.TB) { etcdtest.Observe(t, s, "p/").RequireNeverAbsent(t, "p/2") })
	require.Contains(t, msg, "never there")
}

func TestARestartIsNoAbsence(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	o := etcdtest.Observe(t, s, "p/")
	put(t, s.Client(t), "p/1", "v")
	for range 3 {
		s.Restart()
		o.RequireNeverAbsent(t, "p/1")
	}
	put(t, s.Client(t), "p/1", "w")
	require.Equal(t, []string{"v", "w"}, told(o, "p/1"))
}

func TestAWipeIsAnAbsenceEvenWhereTheKeyIsPutBackAtTheSameRevision(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	o := etcdtest.Observe(t, s, "p/")
	put(t, s.Client(t), "p/1", "v")
	require.Equal(t, []string{"v"}, told(o, "p/1"))
	for _, want := range [][]string{{"v", "-", "v"}, {"v", "-", "v", "-", "v"}} {
		s.Wipe()
		put(t, s.Client(t), "p/1", "v")
		etcdtest.RequireSoon(t, 5*time.Second, func() bool { return len(told(o, "p/1")) == len(want) })
		require.Equal(t, want, told(o, "p/1"))
	}
	require.Len(t, o.Absences("p/1"), 2)
}

func TestARestoreIsAnAbsenceOfWhatItTakesAwayOnly(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	o := etcdtest.Observe(t, s, "p/")
	put(t, s.Client(t), "p/old", "v")
	s.Snapshot()
	put(t, s.Client(t), "p/new", "v")
	require.Equal(t, []string{"v"}, told(o, "p/new"))
	s.Restore()
	etcdtest.RequireSoon(t, 5*time.Second, func() bool { return len(o.Absences("p/new")) == 1 })
	o.RequireNeverAbsent(t, "p/old")
}

func TestObserverGoesOnThroughEveryFault(t *testing.T) {
	t.Parallel()
	ca := etcdtest.NewCA(t)
	s := etcdtest.Start(t, etcdtest.QuickTicks(), etcdtest.WithServerTLS(ca.Issue(t)), etcdtest.WithAuth("user", "pass"))
	o := etcdtest.Observe(t, s, "p/")
	n := 0
	check := func(what string) {
		t.Helper()
		n++
		put(t, s.Client(t), "p/1", what)
		etcdtest.RequireSoon(t, 5*time.Second, func() bool {
			values := told(o, "p/1")
			return len(values) > 0 && values[len(values)-1] == what
		}, "%s\n%s", what, o.Timeline())
	}
	check("start")
	s.Compact(t)
	check("compaction")
	s.Restart()
	check("restart")
	s.Wipe()
	check("wipe")
	s.AuthDisable(t)
	check("auth off")
	s.AuthEnable(t)
	check("auth on")
	s.Snapshot()
	check("snapshot")
	s.Restore()
	check("restore")
}

func TestObserverFollowsAClusterWhoseLeaderFails(t *testing.T) {
	t.Parallel()
	c := etcdtest.StartCluster(t, 3, etcdtest.QuickTicks())
	o := etcdtest.Observe(t, c, "p/")
	put(t, c.Client(t), "p/1", "v")
	leader := c.Leader()
	leader.Stop()
	put(t, c.Client(t), "p/1", "w")
	require.Equal(t, []string{"v", "w"}, told(o, "p/1"))
	leader.Start()
	c.Wipe()
	put(t, c.Client(t), "p/1", "v")
	etcdtest.RequireSoon(t, 5*time.Second, func() bool { return len(o.Absences("p/1")) == 1 })
}

func TestEndpointsAreATargetToo(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	o := etcdtest.Observe(t, etcdtest.Endpoints(s.Endpoints()), "p/")
	put(t, s.Client(t), "p/1", "v")
	o.RequireNeverAbsent(t, "p/1")
	require.Zero(t, s.Requests()["Watch"])
}
