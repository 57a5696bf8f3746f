package discov

import "runtime"

// growStack grows the goroutine's stack to what a request needs (because: where it grew on the way, it was copied twice with
// some thirty frames on it, a twelfth of the CPU time of a burst of registrations).
//
//go:noinline
func growStack() {
	var room [requestStack]byte
	runtime.KeepAlive(&room)
}
