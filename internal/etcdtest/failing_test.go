package etcdtest_test

import (
	"fmt"
	"runtime"
)

func (f *failing) Helper() {}

func (f *failing) Cleanup(do func()) { f.cleanups = append(f.cleanups, do) }

func (f *failing) Failed() bool { return f.failed }

func (f *failing) Fatal(args ...any) { f.Fatalf("%s", fmt.Sprint(args...)) }

func (f *failing) Fatalf(format string, args ...any) {
	f.Logf(format, args...)
	f.failed = true
	runtime.Goexit()
}

func (f *failing) Logf(format string, args ...any) { fmt.Fprintf(&f.log, format+"\n", args...) }
