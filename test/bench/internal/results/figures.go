package results

import (
	"maps"
	"math"
	"slices"
)

// A Figure is one of the things that a row has measured.
type Figure struct {
	Name string // with its unit
	Of   func(Row) float64
}

// The figures, in the units in which they are shown. One that is infinite stands for what did not happen.
var (
	Register    = Figure{"register, ms", func(r Row) float64 { return r.RegisterMS }}
	RegisterCPU = Figure{"register, CPU ms", func(r Row) float64 { return r.RegisterCPUMS }}
	RestCPU     = Figure{"at rest, CPU % of a core", func(r Row) float64 { return r.RestCPUPercent }}
	RestEtcdCPU = Figure{"at rest, etcd's CPU % of a core", func(r Row) float64 { return r.RestEtcdCPUPercent }}
	Keepalives  = Figure{"at rest, keepalives a second", func(r Row) float64 { return r.KeepalivesPerS }}
	Ranges      = Figure{"at rest, Range requests a second", func(r Row) float64 { return r.RangesPerS }}
	Memory      = Figure{"memory per registration, KiB", func(r Row) float64 { return r.BytesPerRegistration / 1024 }}
	Goroutines  = Figure{"goroutines per registration", func(r Row) float64 { return r.GoroutinesPerRegistration }}
	Back        = Figure{"back after all leases are revoked, ms", func(r Row) float64 { return orNever(r.BackMS) }}
	Stop        = Figure{"stop, ms", func(r Row) float64 { return orNever(r.StopMS) }}

	LeftGoroutines = Figure{"left 5 s after: goroutines", func(r Row) float64 { return float64(r.LeftGoroutines) }}
	LeftLeases     = Figure{"left 5 s after: leases", func(r Row) float64 { return float64(r.LeftLeases) }}
	LeftWatchers   = Figure{"left 5 s after: watchers", func(r Row) float64 { return float64(r.LeftWatchers) }}
	LeftKeys       = Figure{"left 5 s after: keys", func(r Row) float64 { return float64(r.LeftKeys) }}
)

func orNever(ms *float64) float64 {
	if ms == nil {
		return math.Inf(1)
	}
	return *ms
}

// Requests returns a figure for each gRPC method that any of the rows has seen, by name.
func (rs Rows) Requests() []Figure {
	methods := map[string]bool{}
	for _, r := range rs {
		for method := range r.RequestsPerRegistration {
			methods[method] = true
		}
	}
	var figures []Figure
	for _, method := range slices.Sorted(maps.Keys(methods)) {
		figures = append(figures, Figure{
			"requests per registration: " + method,
			func(r Row) float64 { return r.RequestsPerRegistration[method] },
		})
	}
	return figures
}
