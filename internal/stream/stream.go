// Package stream renews leases and watches keys over the streams of one link to etcd, and knows how quickly etcd answers.
package stream

import "time"

const (
	// A request without an answer for busyAfter means that etcd is slow: others go over other streams.
	busyAfter = 100 * time.Millisecond
	// mostStreams is how many there are at most.
	mostStreams = 8
	// chunk is how many renewals are sent at once, so that etcd answers others between them.
	chunk = 512
	// gather is how long a request of a watch waits for others, to go out with them: a packet of its own costs many times as
	// much, on both sides. Nothing is missed meanwhile, since a watch begins at a revision that was read or written.
	gather = 10 * time.Millisecond
	// askAgain is how long a request has no answer at least until it is made again, twice as long each time, up to
	// maxRepeats times.
	askAgain   = time.Second
	maxRepeats = 4
)
