// Package results is what a benchmark run has found: its rows, as a file and as medians.
package results

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
)

// The kinds of registration that are compared.
const (
	Raw    = "raw"
	GoZero = "gozero"
	Discov = "discov"
)

// The shapes in which registrations start.
const (
	Burst  = "burst"  // as quickly as they can
	Spread = "spread" // evenly over a third of the TTL
)

// A Row is what one run of one kind has found. The package comment of the benchmark says what each figure means.
type Row struct {
	Kind  string `json:"kind"`
	Size  int    `json:"size"`
	Shape string `json:"shape"`
	Round int    `json:"round"`
	Brief bool   `json:"brief,omitempty"` // only the starts were tried: what follows their requests is unset, not 0 or never

	RegisterMS              float64            `json:"register_ms"`
	RegisterCPUMS           float64            `json:"register_cpu_ms"`
	RequestsPerRegistration map[string]float64 `json:"requests_per_registration"` // by gRPC method

	RestCPUPercent     float64 `json:"rest_cpu_percent_of_core"`
	RestEtcdCPUPercent float64 `json:"rest_etcd_cpu_percent_of_core"`
	KeepalivesPerS     float64 `json:"rest_keepalives_per_s"`
	RangesPerS         float64 `json:"rest_ranges_per_s"`

	// What is already taken off RestCPUPercent and RestEtcdCPUPercent: what the same two used before the first start, and
	// what the idle two use more than at that time.
	BaseCPUPercent      float64 `json:"base_cpu_percent_of_core"`
	BaseEtcdCPUPercent  float64 `json:"base_etcd_cpu_percent_of_core"`
	DriftCPUPercent     float64 `json:"drift_cpu_percent_of_core"`
	DriftEtcdCPUPercent float64 `json:"drift_etcd_cpu_percent_of_core"`

	BytesPerRegistration      float64 `json:"memory_bytes_per_registration"`
	GoroutinesPerRegistration float64 `json:"goroutines_per_registration"`

	BackMS *float64 `json:"back_after_revokes_ms"` // nil where not all came back
	StopMS *float64 `json:"stop_ms"`               // nil where not all went

	LeftGoroutines int `json:"left_goroutines"`
	LeftLeases     int `json:"left_leases"`
	LeftWatchers   int `json:"left_watchers"`
	LeftKeys       int `json:"left_keys"`
}

// Rows are the rows of a run, in any order.
type Rows []Row

// Read reads rows as they are written: one JSON object after the other.
func Read(r io.Reader) (Rows, error) {
	var rows Rows
	for dec := json.NewDecoder(r); ; {
		var row Row
		switch err := dec.Decode(&row); {
		case errors.Is(err, io.EOF):
			return rows, nil
		case err != nil:
			return nil, fmt.Errorf("row %d: %w", len(rows)+1, err)
		}
		rows = append(rows, row)
	}
}

// Write writes the row as one line of JSON.
func (r Row) Write(w io.Writer) error {
	return json.NewEncoder(w).Encode(r)
}

// Sizes returns the sizes that there are, in ascending order.
func (rs Rows) Sizes() []int {
	sizes := map[int]bool{}
	for _, r := range rs {
		sizes[r.Size] = true
	}
	return slices.Sorted(maps.Keys(sizes))
}

// Of returns the rows of one kind, size and shape.
func (rs Rows) Of(kind string, size int, shape string) Rows {
	var of Rows
	for _, r := range rs {
		if r.Kind == kind && r.Size == size && r.Shape == shape {
			of = append(of, r)
		}
	}
	return of
}

// Median returns the median of a figure over the rows that have it. It is NaN where none has, and infinite where what the
// figure measures did not happen in half of them.
func (rs Rows) Median(f Figure) float64 {
	var values []float64
	for _, r := range rs {
		if f.OfStarts == r.Brief {
			values = append(values, f.Of(r))
		}
	}
	if len(values) == 0 {
		return math.NaN()
	}
	slices.Sort(values)
	low, high := values[(len(values)-1)/2], values[len(values)/2]
	return (low + high) / 2
}
