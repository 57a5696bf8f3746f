package etcdtest

import (
	"fmt"
	"time"
)

// KV is a key as it is in etcd.
type KV struct {
	Value   string
	Lease   int64
	Created int64 // revision
	Changed int64 // revision
}

// A Change is one thing that happened to a key.
type Change struct {
	Time     time.Time // when the observer learned of it
	Revision int64     // 0 where it is not known
	Key      string
	Gone     bool // deleted, expired or lost
	KV            // as it is since, or as it was where Gone
	// Listed says that no event told it: the observer found it when it listed the keys anew, after a wipe or a break.
	Listed bool
}

func (c Change) String() string {
	what := fmt.Sprintf("put %q lease %x", c.Value, c.Lease)
	if c.Gone {
		what = "gone"
	}
	if c.Listed {
		what += " (found by listing)"
	}
	return fmt.Sprintf("%s rev %d %s %s", c.Time.Format("15:04:05.000"), c.Revision, c.Key, what)
}

// An Absence is a time in which a key that had been there was not. To is zero while it lasts.
type Absence struct{ From, To time.Time }

// Duration is the length of it, until now where it lasts.
func (a Absence) Duration() time.Duration {
	if a.To.IsZero() {
		return time.Since(a.From)
	}
	return a.To.Sub(a.From)
}

func (a Absence) String() string {
	return fmt.Sprintf("absent from %s for %v", a.From.Format("15:04:05.000"), a.Duration().Round(time.Millisecond))
}
