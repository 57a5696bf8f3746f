package etcdtest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
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

// Changes returns what happened to all keys, in order.
func (o *Observer) Changes() []Change {
	o.catchUp()
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.changes)
}

// History returns what happened to key.
func (o *Observer) History(key string) []Change {
	var of []Change
	for _, c := range o.Changes() {
		if c.Key == key {
			of = append(of, c)
		}
	}
	return of
}

// Absences returns when key was absent since it was first seen.
func (o *Observer) Absences(key string) []Absence {
	var absences []Absence
	seen, gone := false, false
	for _, c := range o.History(key) {
		switch {
		case c.Gone && seen && !gone:
			absences = append(absences, Absence{From: c.Time})
			gone = true
		case !c.Gone && gone:
			absences[len(absences)-1].To = c.Time
			gone = false
		}
		seen = seen || !c.Gone
	}
	return absences
}

// RequireNeverAbsent fails the test where key was never seen, or was absent since.
func (o *Observer) RequireNeverAbsent(t testing.TB, key string) {
	t.Helper()
	absences := o.Absences(key)
	if len(o.History(key)) == 0 {
		t.Fatalf("etcdtest: %s was never there", key)
	}
	if len(absences) > 0 {
		t.Fatalf("etcdtest: %s was %v", key, absences)
	}
}

// Timeline is what happened to every key, a line each, for people.
func (o *Observer) Timeline() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var b strings.Builder
	for _, c := range o.changes {
		fmt.Fprintln(&b, c)
	}
	return b.String()
}
