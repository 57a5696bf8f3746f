package conn

import (
	"sync/atomic"
	"time"
)

// Bounds are those of one user's requests.
type Bounds struct {
	// Call bounds one request. Zero lets each have all the time that its context has: over a slow network, a first
	// registration has none for a second try.
	Call time.Duration
	// Patience is how long etcd may be silent until the link is in doubt, and MaxPatience how long where round trips are
	// known to be slow.
	Patience, MaxPatience time.Duration
}

// requester is one user's requests, each within its bound, with errors in plain words. It is safe for concurrent use.
type requester struct {
	links  *links
	bounds Bounds
	// misses counts the requests and the waits for a connection that were in vain, since the last wait that was not.
	misses atomic.Int32
}

// patienceOn stretches the patience where round trips are slow.
func (c *requester) patienceOn(l *link) time.Duration {
	return min(max(c.bounds.Patience, l.pulse.Late()), max(c.bounds.Patience, c.bounds.MaxPatience))
}
