package discovprom_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/discovprom"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const eventually = 10 * time.Second

func newPublisher(t *testing.T, endpoints []string, key string, opts ...discov.PubOption) *discov.Publisher {
	t.Helper()
	pub := discov.NewPublisher(endpoints, key, "10.0.0.7:8080", append([]discov.PubOption{discov.WithLogger(quiet)}, opts...)...)
	t.Cleanup(pub.Stop)
	return pub
}

func publish(t *testing.T, endpoints []string, key string, opts ...discov.PubOption) *discov.Publisher {
	t.Helper()
	pub := newPublisher(t, endpoints, key, opts...)
	ctx, cancel := context.WithTimeout(t.Context(), eventually)
	defer cancel()
	require.NoError(t, pub.KeepAliveContext(ctx))
	return pub
}

// series is what a scrape has: the value of each series by its name and the values of its labels, in the order of their names.
type series map[string]float64

// n is the value of a series that counts.
func (s series) n(name string) int {
	value, ok := s[name]
	if !ok {
		return -1
	}
	return int(value)
}

func scrape(t *testing.T, c prometheus.Collector) series {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(c))
	families, err := registry.Gather()
	require.NoError(t, err)
	all := series{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			all[nameOf(family, m)] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return all
}

func nameOf(family *dto.MetricFamily, m *dto.Metric) string {
	name := family.GetName()
	for _, label := range m.GetLabel() {
		name += " " + label.GetValue()
	}
	return name
}

func TestThereAreNoFaultsOfStyle(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.QuickTicks())
	problems, err := testutil.CollectAndLint(discovprom.NewCollector(publish(t, srv.Endpoints(), "user.rpc")))
	require.NoError(t, err)
	require.Empty(t, problems)
}

func TestAPublisherIsExported(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.QuickTicks())
	pub := publish(t, srv.Endpoints(), "user.rpc")
	c := discovprom.NewCollector(pub)
	all := scrape(t, c)
	require.Len(t, all, 23+2, "as the package's comment says")
	require.Equal(t, 1, all.n("discov_publishers"))
	require.Equal(t, 1, all.n("discov_connections"))
	require.Equal(t, 1, all.n("discov_publisher_state user.rpc published"))
	require.Equal(t, 0, all.n("discov_publisher_state user.rpc conflict"))
	require.Equal(t, 1, all.n("discov_publisher_registrations_total user.rpc"))
	require.Equal(t, 0, all.n("discov_publisher_losses_total store_went_back user.rpc"))
	require.Equal(t, 10, all.n("discov_publisher_lease_ttl_seconds user.rpc"))
	now := float64(time.Now().Unix())
	require.InDelta(t, now+10, all["discov_publisher_lease_expiry_timestamp_seconds user.rpc"], 10)
	require.InDelta(t, now, all["discov_publisher_last_renewal_timestamp_seconds user.rpc"], 10)
	require.Positive(t, all["discov_publisher_registration_duration_seconds user.rpc"])
	require.Contains(t, all, "discov_publisher_attempts_total user.rpc")
	require.Contains(t, all, "discov_publisher_failures_total user.rpc")
	require.Contains(t, all, "discov_publisher_conflicts_total user.rpc")

	revoke(t, srv, pub.Status().Lease)
	etcdtest.RequireSoon(t, eventually, func() bool { return scrape(t, c).n("discov_publisher_registrations_total user.rpc") == 2 }, "registered again")
	require.Equal(t, 1, scrape(t, c).n("discov_publisher_losses_total lease_ended user.rpc"))

	require.NoError(t, pub.StopContext(t.Context()))
	all = scrape(t, c)
	require.Equal(t, 1, all.n("discov_publisher_state user.rpc stopped"))
	require.NotContains(t, all, "discov_publisher_lease_expiry_timestamp_seconds user.rpc", "there is no lease")
	require.Equal(t, 2, all.n("discov_publisher_registrations_total user.rpc"))
}

func revoke(t *testing.T, srv *etcdtest.Server, lease clientv3.LeaseID) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), eventually)
	defer cancel()
	_, err := srv.Client(t).Revoke(ctx, lease)
	require.NoError(t, err)
}

func TestPublishersWithOneKeyAreAddedUp(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.QuickTicks())
	first := publish(t, srv.Endpoints(), "user.rpc", discov.WithTTL(20*time.Second))
	second := publish(t, srv.Endpoints(), "user.rpc", discov.WithTTL(15*time.Second))
	other := publish(t, srv.Endpoints(), "order.rpc", discov.WithId(3))
	third := newPublisher(t, srv.Endpoints(), "user.rpc")
	c := discovprom.NewCollector(first, second, other, third)
	c.Add(first) // once more
	all := scrape(t, c)
	require.Equal(t, 4, all.n("discov_publishers"))
	require.Equal(t, 1, all.n("discov_connections"), "they share it")
	require.Equal(t, 2, all.n("discov_publisher_state user.rpc published"))
	require.Equal(t, 1, all.n("discov_publisher_state user.rpc idle"))
	require.Equal(t, 2, all.n("discov_publisher_registrations_total user.rpc"))
	require.Equal(t, 1, all.n("discov_publisher_registrations_total order.rpc"), "without its id")
	require.Equal(t, 15, all.n("discov_publisher_lease_ttl_seconds user.rpc"), "the least")
	earliest := int(min(first.Status().Until.Unix(), second.Status().Until.Unix()))
	require.InDelta(t, earliest, all.n("discov_publisher_lease_expiry_timestamp_seconds user.rpc"), 1, "the earliest")
}

func TestACounterNeverGoesDownWhileItsKeyIsExported(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.QuickTicks())
	first, second := publish(t, srv.Endpoints(), "user.rpc"), publish(t, srv.Endpoints(), "user.rpc")
	c := discovprom.NewCollector(first, second)
	for range 2 { // the second time it is not there
		first.Stop()
		c.Remove(first)
		all := scrape(t, c)
		require.Equal(t, 1, all.n("discov_publishers"))
		require.Equal(t, 2, all.n("discov_publisher_registrations_total user.rpc"))
		require.Equal(t, 0, all.n("discov_publisher_state user.rpc stopped"))
	}
	c.Remove(second)
	require.Len(t, scrape(t, c), 2, "none is left of the key")
}

func TestALeaseThatIsNotKeptIsNotExported(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.QuickTicks())
	pub := publish(t, srv.Endpoints(), "user.rpc", discov.WithTTL(2*time.Second), discov.WithTimeout(200*time.Millisecond))
	srv.Stop()
	var left *discov.WithdrawError
	require.ErrorAs(t, pub.StopContext(t.Context()), &left)
	c := discovprom.NewCollector(pub)
	etcdtest.RequireSoon(t, eventually, func() bool { return scrape(t, c).n("discov_publisher_state user.rpc stopped") == 1 }, "it has given up")
	require.NotContains(t, scrape(t, c), "discov_publisher_lease_expiry_timestamp_seconds user.rpc")
	srv.Start()
}

func TestNoKeyFailsAScrape(t *testing.T) {
	c := discovprom.NewCollector(
		newPublisher(t, nil, "a\xffb"), newPublisher(t, nil, "a\xfeb"), newPublisher(t, nil, ""), newPublisher(t, nil, "a b\n\"c\\"), new(discov.Publisher))
	all := scrape(t, c)
	require.Equal(t, 5, all.n("discov_publishers"))
	require.Equal(t, 2, all.n("discov_publisher_state a\uFFFDb idle"))
	require.Equal(t, 2, all.n("discov_publisher_state  idle"))
}

func TestANilPublisherIsNamedAtOnce(t *testing.T) {
	require.PanicsWithValue(t, "discovprom: a nil *discov.Publisher", func() { discovprom.NewCollector(nil) })
}

func TestScrapesAndChangesMayMeet(t *testing.T) {
	c := discovprom.NewCollector()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 200 {
			pub := newPublisher(t, nil, "user.rpc/"+strconv.Itoa(i%7))
			c.Add(pub)
			if i%2 == 0 {
				c.Remove(pub)
			}
		}
	}()
	for range 20 {
		scrape(t, c)
	}
	<-done
	require.Equal(t, 100, scrape(t, c).n("discov_publishers"))
}

// metricsIn returns the names of metrics that a text has.
func metricsIn(text string) map[string]bool {
	names := map[string]bool{}
	for _, name := range regexp.MustCompile(`\bdiscov_[a-z_]+`).FindAllString(text, -1) {
		names[name] = true
	}
	return names
}

func TestAlertsAndDashboardNameMetricsThatExist(t *testing.T) {
	descs := make(chan *prometheus.Desc, 100)
	discovprom.NewCollector().Describe(descs)
	close(descs)
	exported := map[string]bool{}
	for desc := range descs {
		for name := range metricsIn(desc.String()) {
			exported[name] = true
		}
	}
	require.Len(t, exported, 12)
	for _, file := range []string{"alerts.yml", "alerts_test.yml", "dashboard.json"} {
		text, err := os.ReadFile(filepath.Join("..", "docs", "monitoring", file))
		require.NoError(t, err)
		named := metricsIn(string(text))
		require.NotEmpty(t, named, file)
		for name := range named {
			require.Contains(t, exported, name, file)
		}
		if file == "dashboard.json" {
			require.True(t, json.Valid(text))
			require.Len(t, named, len(exported), "all are on the dashboard")
		}
	}
}
