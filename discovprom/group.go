package discovprom

import (
	"maps"
	"time"

	"github.com/discov-go/discov"
	"github.com/prometheus/client_golang/prometheus"
)

// all are the descriptions of all metrics.
var all []*prometheus.Desc

func desc(name, help string, labels ...string) *prometheus.Desc {
	d := prometheus.NewDesc("discov_"+name, help, labels, nil)
	all = append(all, d)
	return d
}

var (
	publishers  = desc("publishers", "Publishers that are exported.")
	connections = desc("connections", "Connections to etcd, shared by all Publishers of the process.")

	state         = desc("publisher_state", "Whether the Publisher of the key is in the state; how many are, where several have the key.", "key", "state")
	registrations = desc("publisher_registrations_total", "Times that the key was put into etcd because it was missing or wrong.", "key")
	attempts      = desc("publisher_attempts_total", "Tries to put or to confirm the key.", "key")
	failures      = desc("publisher_failures_total", "Tries to put or to confirm the key that failed.", "key")
	conflicts     = desc("publisher_conflicts_total", "Times that another instance was found to hold the key.", "key")
	losses        = desc("publisher_losses_total", "Times that the published key was lost, found to be wrong, or could not be confirmed.", "key", "cause")
	duration      = desc("publisher_registration_duration_seconds", "How long the latest registration took, from when it was asked for or the loss was noticed; the longest, where several have the key.", "key")
	lastRenewal   = desc("publisher_last_renewal_timestamp_seconds", "When the latest answered renewal of the lease was sent; the earliest, where several have the key. Absent without a lease.", "key")
	leaseExpiry   = desc("publisher_lease_expiry_timestamp_seconds", "When the lease expires unless it is renewed; the earliest, where several have the key. Absent without a lease.", "key")
	leaseTTL      = desc("publisher_lease_ttl_seconds", "The TTL that etcd has granted; the least, where several have the key. Absent without a lease.", "key")
)

// counts are counters of one key.
type counts struct {
	registrations, attempts, failures, conflicts int
	losses                                       map[discov.Cause]int
}

func (c counts) clone() counts {
	c.losses = maps.Clone(c.losses)
	return c
}

func (c *counts) add(s discov.Stats) {
	c.registrations += s.Registrations
	c.attempts += s.Attempts
	c.failures += s.Failures
	c.conflicts += s.Conflicts
	if c.losses == nil {
		c.losses = map[discov.Cause]int{}
	}
	for cause, n := range s.Losses {
		c.losses[cause] += n
	}
}

// group is the Publishers of one key.
type group struct {
	counts
	states map[discov.State]int
	took   time.Duration // the longest

	// The earliest and the least of those that hold a lease; zero where none does.
	renewed, until time.Time
	ttl            time.Duration
}

func (g *group) add(pub *discov.Publisher) {
	status, stats := pub.Status(), pub.Stats()
	g.counts.add(stats)
	g.states[status.State]++
	g.took = max(g.took, stats.LastRegistration)
	if !isKept(status, stats) {
		return
	}
	g.renewed, g.until = earlier(g.renewed, stats.LastRenewal), earlier(g.until, status.Until)
	if g.ttl == 0 || status.TTL < g.ttl {
		g.ttl = status.TTL
	}
}

// isKept reports whether a Publisher holds a lease, of which something can be told: not one that was asked for without an answer,
// nor one that a Stop has left to its end.
func isKept(status discov.Status, stats discov.Stats) bool {
	return status.Lease != 0 && status.TTL != 0 && !stats.LastRenewal.IsZero() && status.State != discov.StateStopped
}

// earlier returns the earlier of two times, of which the first may be zero.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

func (g *group) collect(key string, metrics chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, append([]string{key}, labels...)...)
	}
	counter := func(desc *prometheus.Desc, value int, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), append([]string{key}, labels...)...)
	}
	for s := discov.StateIdle; s <= discov.StateStopped; s++ {
		gauge(state, float64(g.states[s]), s.String())
	}
	counter(registrations, g.registrations)
	counter(attempts, g.attempts)
	counter(failures, g.failures)
	counter(conflicts, g.conflicts)
	for cause, n := range g.losses {
		counter(losses, n, cause.String())
	}
	gauge(duration, g.took.Seconds())
	if !g.until.IsZero() {
		gauge(lastRenewal, seconds(g.renewed))
		gauge(leaseExpiry, seconds(g.until))
		gauge(leaseTTL, g.ttl.Seconds())
	}
}

// seconds is Unix time, as Prometheus wants it.
func seconds(t time.Time) float64 { return float64(t.UnixNano()) / float64(time.Second) }
