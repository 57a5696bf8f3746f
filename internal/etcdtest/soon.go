package etcdtest

import (
	"fmt"
	"testing"
	"time"
)

// RequireSoon waits until cond holds, and fails the test where it does not within the time. It asks every 5 ms.
func RequireSoon(t testing.TB, within time.Duration, cond func() bool, msg ...any) {
	t.Helper()
	for deadline := time.Now().Add(within); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("etcdtest: not within %v: %s", within, message(msg))
		}
	}
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
