// Package bubble runs tests in virtual time.
package bubble

import (
	"runtime"
	"testing"
	"testing/synctest"
)

// Test is synctest.Test on one processor. On several, timers that are due at the same moment may run at once, with one context
// of the race detector for all of them, which it does not survive (because: golang/go issue 78156; seen as SIGSEGV within
// ThreadSanitizer in one of a hundred runs). Who calls it must not be parallel to other tests, which it would slow down.
func Test(t *testing.T, test func(*testing.T)) {
	t.Helper()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	synctest.Test(t, test)
}
