package discov

import "time"

const (
	// A key that is free again after another instance has held it is taken at once the first time, and then after fillLeast,
	// twice that and so on, up to fillMost, until quietTime has passed: a twin that crashes again and again is left alone for a
	// while, but never has the key to itself.
	fillLeast = time.Second
	fillMost  = 10 * time.Second
	// A key that is there is put over at most overMost times in quietTime: two instances with one id would fight for ever.
	overMost  = 2
	quietTime = time.Minute
)

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
