package etcdtest

import (
	"slices"
	"testing"
)

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
