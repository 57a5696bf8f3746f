package etcdtest

import (
	"fmt"
	"testing"
	"time"
)

// tick is how often RequireSoon asks.
const tick = 5 * time.Millisecond

// RequireSoon waits until cond holds, and fails the test where it does not within the time. A machine that has too much to
// do gets twice the time by which it was late.
func RequireSoon(t testing.TB, within time.Duration, cond func() bool, msg ...any) {
	t.Helper()
	for deadline := time.Now().Add(within); !cond(); deadline = deadline.Add(2 * Doze()) {
		if time.Now().After(deadline) {
			t.Fatalf("etcdtest: not within %v: %s", within, message(msg))
		}
	}
}

// Doze sleeps for 5 ms, and returns how much longer that took where it took more than twice as long: by so much this machine
// is late.
func Doze() (late time.Duration) {
	began := time.Now()
	time.Sleep(tick)
	if late = time.Since(began) - tick; late > tick {
		return late
	}
	return 0
}

// message formats what RequireSoon was given, like testify's: a text, or a format and its arguments.
func message(msg []any) string {
	if len(msg) == 0 {
		return "the condition"
	}
	if format, ok := msg[0].(string); ok {
		return fmt.Sprintf(format, msg[1:]...)
	}
	return fmt.Sprint(msg...)
}
