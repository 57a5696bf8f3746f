package conn

import (
	"context"
	"sync/atomic"
)

// A Conn is a connection to etcd that outlives its links. It is safe for concurrent use.
type Conn struct {
	links   *links
	history history
	own     requester // of what is done for all users at once
	beats   *beats
	keys    *keys
}

// opened counts the connections that are open.
var opened atomic.Int64

// Count returns how many connections are open.
func Count() int { return int(opened.Load()) }

// Open makes a connection. It does not wait until there is one, unless the target's tuning does.
func Open(to Target) (*Conn, error) {
	c := &Conn{}
	var err error
	if c.links, err = open(to, &c.history); err != nil {
		return nil, err
	}
	opened.Add(1)
	c.own = c.requester(Bounds{Call: auditTimeout, Patience: mostPatience, MaxPatience: auditTimeout / 2})
	c.beats = newBeats(c.links)
	c.keys = newKeys(c.links, &c.own)
	c.history.wentBack, c.history.findOut = c.beats.wentBack, c.findOut
	return c, nil
}

// Close closes the connection. The calls of its users must have ended.
func (c *Conn) Close() {
	c.links.close()
	opened.Add(-1)
}

// A Caller is one user's use of a connection. It is safe for concurrent use.
type Caller struct {
	requester
	*beats
	*keys
}

// Caller returns a user of the connection.
func (c *Conn) Caller(bounds Bounds) Caller {
	return Caller{c.requester(bounds), c.beats, c.keys}
}

func (c *Conn) requester(bounds Bounds) requester {
	return requester{links: c.links, bounds: bounds}
}

// findOut finds out for sure whether etcd went back.
func (c *Conn) findOut() {
	c.links.run(func() {
		ctx, cancel := context.WithTimeout(c.links.ctx, auditTimeout)
		defer cancel()
		_ = c.own.askRevision(ctx) // what it tells is noted; where there is no answer, another is heard soon
	})
}
