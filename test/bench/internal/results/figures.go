package results

import (
	"maps"
	"math"
	"slices"
)

// A Figure is one of the things that a row has measured.
type Figure struct {
	Name     string // with its unit
	Of       func(Row) float64
	OfStarts bool // whether it is that of brief rows: in the others a long idle time has come before the starts
}

// The figures, in the units in which they are shown. One that is infinite stands for what did not happen.
var (
	Register    = Figure{Name: "register, ms", Of: func(r Row) float64 { return r.RegisterMS }, OfStarts: true}
	RegisterCPU = Figure{Name: "register, CPU ms", Of: func(r Row) float64 { return r.RegisterCPUMS }, OfStarts: true}
	RestCPU     = Figure{Name: "at rest, CPU % of a core", Of: func(r Row) float64 { return r.RestCPUPercent }}
	RestEtcdCPU = Figure{Name: "at rest, etcd's CPU % of a core", Of: func(r Row) float64 { return r.RestEtcdCPUPercent }}
	Keepalives  = Figure{Name: "at rest, keepalives a second", Of: func(r Row) float64 { return r.KeepalivesPerS }}
	Ranges      = Figure{Name: "at rest, Range requests a second", Of: func(r Row) float64 { return r.RangesPerS }}
	Memory      = Figure{Name: "memory per registration, KiB", Of: func(r Row) float64 { return r.BytesPerRegistration / 1024 }}
	Goroutines  = Figure{Name: "goroutines per registration", Of: func(r Row) float64 { return r.GoroutinesPerRegistration }}
	Back        = Figure{Name: "back after all leases are revoked, ms", Of: func(r Row) float64 { return orNever(r.BackMS) }}
	Stop        = Figure{Name: "stop, ms", Of: func(r Row) float64 { return orNever(r.StopMS) }}

	LeftGoroutines = Figure{Name: "left 5 s after: goroutines", Of: func(r Row) float64 { return float64(r.LeftGoroutines) }}
	LeftLeases     = Figure{Name: "left 5 s after: leases", Of: func(r Row) float64 { return float64(r.LeftLeases) }}
	LeftWatchers   = Figure{Name: "left 5 s after: watchers", Of: func(r Row) float64 { return float64(r.LeftWatchers) }}
	LeftKeys       = Figure{Name: "left 5 s after: keys", Of: func(r Row) float64 { return float64(r.LeftKeys) }}
)

func orNever(ms *float64) float64 {
	if ms == nil {
		return math.Inf(1)
	}
	return *ms
}

// Requests returns a figure for each gRPC method that any brief row has seen, by name.
func (rs Rows) Requests() []Figure {
	methods := map[string]bool{}
	for _, r := range rs {
		if !r.Brief {
			continue
		}
		for method := range r.RequestsPerRegistration {
			methods[method] = true
		}
	}
	var figures []Figure
	for _, method := range slices.Sorted(maps.Keys(methods)) {
		figures = append(figures, Figure{
			Name:     "requests per registration: " + method,
			Of:       func(r Row) float64 { return r.RequestsPerRegistration[method] },
			OfStarts: true,
		})
	}
	return figures
}
