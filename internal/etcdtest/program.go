package etcdtest

import (
	"fmt"
	"os"
	"slices"
	"testing"
)

// Program stands in for a test where there is none, in a program and in an example. What would fail a test panics. The zero
// value is ready to use.
type Program struct {
	testing.TB // the methods that nothing here calls
	cleanups   []func()
}

// End ends what was started for it.
func (p *Program) End() {
	for _, cleanup := range slices.Backward(p.cleanups) {
		cleanup()
	}
	p.cleanups = nil
}

// Helper implements testing.TB.
func (*Program) Helper() {}

// Cleanup implements testing.TB.
func (p *Program) Cleanup(cleanup func()) { p.cleanups = append(p.cleanups, cleanup) }

// Failed implements testing.TB.
func (*Program) Failed() bool { return false }

// Logf implements testing.TB.
func (*Program) Logf(format string, args ...any) { _, _ = fmt.Fprintf(os.Stderr, format+"\n", args...) }

// Fatal implements testing.TB.
func (*Program) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// Fatalf implements testing.TB.
func (*Program) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// TempDir implements testing.TB.
func (p *Program) TempDir() string {
	dir, err := os.MkdirTemp("", "etcdtest")
	if err != nil {
		panic(err)
	}
	p.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
