package etcdtest

import (
	"os"
	"testing"
)

// Suspend stops a process of the test's own, and returns when it has stopped. It needs Unix signals.
func Suspend(t testing.TB, p *os.Process) {
	t.Helper()
	if err := suspend(p); err != nil {
		t.Fatalf("etcdtest: suspend: %v", err)
	}
}

// Resume lets it go on. Nothing where it has ended.
func Resume(t testing.TB, p *os.Process) {
	t.Helper()
	if err := resume(p); err != nil {
		t.Fatalf("etcdtest: resume: %v", err)
	}
}
