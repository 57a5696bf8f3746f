// Package discovprom exports what Publishers do as metrics for Prometheus.
//
//	collector := discovprom.NewCollector(pub)
//	prometheus.MustRegister(collector)
//
// All are read at the scrape; a Publisher does no more for being exported. The label key is the one that was given to
// NewPublisher, without the ID or the lease ID: a restart makes no new series. A process has 23 series for each of its keys,
// of which three are there only while a lease is held, and two besides. Of Publishers with the same key, states and counters are added up,
// and the rest is that of the worst.
package discovprom

import (
	"slices"
	"strings"
	"sync"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/conn"
	"github.com/prometheus/client_golang/prometheus"
)

// Collector is a [prometheus.Collector] of Publishers. Its methods may be called from any number of goroutines.
type Collector struct {
	mu   sync.Mutex
	pubs []*discov.Publisher
	// removed is what the counters of Publishers that were removed have come to, by key, while others of that key are left:
	// a counter never goes down.
	removed map[string]counts
}

// NewCollector returns a Collector of the Publishers. It panics if one of them is nil.
func NewCollector(pubs ...*discov.Publisher) *Collector {
	c := &Collector{removed: map[string]counts{}}
	c.Add(pubs...)
	return c
}

// Add adds Publishers, but for those that are exported already. One that was removed must not be added again. It panics if one of
// them is nil.
func (c *Collector) Add(pubs ...*discov.Publisher) {
	if slices.Contains(pubs, nil) {
		panic("discovprom: a nil *discov.Publisher")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, pub := range pubs {
		if !slices.Contains(c.pubs, pub) {
			c.pubs = append(c.pubs, pub)
		}
	}
}

// Remove removes Publishers. Remove those that were stopped, if the process goes on: else their key seems to have nobody. What they
// have counted stays in the counters of their key until the last Publisher of that key is removed.
func (c *Collector) Remove(pubs ...*discov.Publisher) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, pub := range pubs {
		i := slices.Index(c.pubs, pub)
		if i < 0 {
			continue
		}
		c.pubs = slices.Delete(c.pubs, i, i+1)
		key := labelOf(pub)
		if !slices.ContainsFunc(c.pubs, func(other *discov.Publisher) bool { return labelOf(other) == key }) {
			delete(c.removed, key)
			continue
		}
		sum := c.removed[key]
		sum.add(pub.Stats())
		c.removed[key] = sum
	}
}

// labelOf returns the label key of a Publisher.
func labelOf(pub *discov.Publisher) string { return strings.ToValidUTF8(pub.Key(), "\uFFFD") }

// Describe implements [prometheus.Collector].
func (c *Collector) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range all {
		descs <- desc
	}
}

// Collect implements [prometheus.Collector].
func (c *Collector) Collect(metrics chan<- prometheus.Metric) {
	n, groups := c.group()
	metrics <- prometheus.MustNewConstMetric(publishers, prometheus.GaugeValue, float64(n))
	metrics <- prometheus.MustNewConstMetric(connections, prometheus.GaugeValue, float64(conn.Count()))
	for key, g := range groups {
		g.collect(key, metrics)
	}
}

// group reads all Publishers.
func (c *Collector) group() (n int, groups map[string]*group) {
	c.mu.Lock()
	defer c.mu.Unlock()
	groups = map[string]*group{}
	for _, pub := range c.pubs {
		key := labelOf(pub)
		if groups[key] == nil {
			groups[key] = &group{states: map[discov.State]int{}, counts: c.removed[key].clone()}
		}
		groups[key].add(pub)
	}
	return len(c.pubs), groups
}
