package results

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
)

// A line of a table shows a figure of the rows of one shape.
type line struct {
	name  string
	shape string
	Figure
}

// Table writes, for each size, the medians of all figures and their ratios.
func (rs Rows) Table(w io.Writer) error {
	for _, size := range rs.Sizes() {
		if err := rs.table(w, size); err != nil {
			return err
		}
	}
	return nil
}

func (rs Rows) table(w io.Writer, size int) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\n%d registrations\traw\tgo-zero\tdiscov\tdiscov/raw\tdiscov/go-zero\tgo-zero/raw\n", size)
	for _, l := range rs.lines() {
		raw := rs.Of(Raw, size, l.shape).Median(l.Figure)
		gozero := rs.Of(GoZero, size, l.shape).Median(l.Figure)
		discov := rs.Of(Discov, size, l.shape).Median(l.Figure)
		if math.IsNaN(raw) && math.IsNaN(gozero) && math.IsNaN(discov) {
			continue // nothing was run in this shape
		}
		cells := []string{
			l.name, Number(raw), Number(gozero), Number(discov),
			Number(ratio(discov, raw)), Number(ratio(discov, gozero)), Number(ratio(gozero, raw)),
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	return t.Flush()
}

// lines returns the lines of a table: all figures of the burst, and those at rest for both shapes, one below the other.
func (rs Rows) lines() []line {
	var lines []line
	burst := func(figures ...Figure) {
		for _, f := range figures {
			lines = append(lines, line{f.Name, Burst, f})
		}
	}
	both := func(figures ...Figure) {
		for _, f := range figures {
			lines = append(lines, line{f.Name, Burst, f}, line{"  starts spread over TTL/3", Spread, f})
		}
	}
	burst(Register, RegisterCPU)
	burst(rs.Requests()...)
	both(RestCPU, RestEtcdCPU, Keepalives, Ranges)
	burst(Memory, Goroutines, Back, Stop, LeftGoroutines, LeftLeases, LeftWatchers, LeftKeys)
	return lines
}

// ratio returns NaN where a ratio would say nothing.
func ratio(a, b float64) float64 {
	if b <= 0 || math.IsInf(a, 0) || math.IsInf(b, 0) {
		return math.NaN()
	}
	return a / b
}

// Number writes a figure with about three digits, "–" for NaN, and "never" for what is infinite.
func Number(v float64) string {
	switch size := math.Abs(v); {
	case math.IsNaN(v):
		return "–"
	case math.IsInf(v, 0):
		return "never"
	case v == math.Trunc(v), size >= 100:
		return fmt.Sprintf("%.0f", v)
	case size >= 10:
		return fmt.Sprintf("%.1f", v)
	case size >= 1:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.3f", v)
	}
}
