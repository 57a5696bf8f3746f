package discov

import "time"

// fights knows how often a key was taken back from another instance of late. The zero fights is none.
type fights struct {
	taken []time.Time // the latest, since the last quietTime time
}

// note notes that the key was taken back.
func (f *fights) note() {
	if n := len(f.taken); n > 0 && time.Since(f.taken[n-1]) > quietTime {
		f.taken = nil
	}
	const enough = 8 // for the longest pause
	f.taken = append(f.taken[max(0, len(f.taken)-enough):], time.Now())
}

// untilNext returns how long it takes until the key may be taken back again: one that exists, or one that is free.
func (f *fights) untilNext(exists bool) time.Duration {
	n := len(f.taken)
	switch {
	case n == 0 || time.Since(f.taken[n-1]) > quietTime:
		return 0
	case !exists:
		return time.Until(f.taken[n-1].Add(min(fillLeast<<(n-1), fillMost)))
	case n < overMost:
		return 0
	default:
		return time.Until(f.taken[n-overMost].Add(quietTime))
	}
}
