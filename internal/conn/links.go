package conn

import (
	"context"
	"sync"
	"time"
)

// links are the one link of now, and those before and after it: one that stalls is replaced under its users.
type links struct {
	to      Target
	history *history

	ctx    context.Context // done when all is closed
	cancel context.CancelFunc

	mu        sync.Mutex
	cur       *link     // never nil
	inDoubt   bool      // whether there is a trial of cur
	acquitted time.Time // when cur was last found well

	running sync.WaitGroup // trials, links on their way out, and what is done for all users at once
}

// open makes the first link. It does not wait until it is connected, unless the target's tuning does.
func open(to Target, h *history) (*links, error) {
	c := &links{to: to, history: h}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	var err error
	if to.Client != nil {
		c.cur = borrow(to.Client, h)
	} else if c.cur, err = dial(to, false, "", h); err != nil {
		c.cancel()
		return nil, err
	}
	return c, nil
}

// close closes the link of now. The calls of its users must have ended.
func (c *links) close() {
	c.mu.Lock() // so that nothing begins after
	c.cancel()
	c.mu.Unlock()
	c.running.Wait()
	c.cur.close()
}

// run runs f beside the users, unless all is closed.
func (c *links) run(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() == nil {
		c.running.Go(f)
	}
}

// enter takes the link of now for a call.
func (c *links) enter() *link {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cur.calls.Add(1)
	return c.cur
}

// link returns the link of now, for what needs no answer.
func (c *links) link() *link {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cur
}

// isReady reports whether the link of now has a connection.
func (c *links) isReady() bool {
	return c.link().ready.isReady()
}

// suspect puts the link in doubt, unless it is. It returns false if that was done just now.
func (c *links) suspect(l *link) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.cur != l || !l.ours || c.inDoubt || c.ctx.Err() != nil:
		return true
	case time.Since(c.acquitted) < acquittal:
		return false
	}
	c.inDoubt = true
	if l.ready.isReady() {
		l.pulse.BeginSilence()
	}
	c.running.Go(func() { c.try(l) })
	return true
}

// try finds out whether etcd or the link is at fault, and moves to another link where it is.
func (c *links) try(l *link) {
	defer l.pulse.EndSilence()
	token := l.account.Token()
	t := trial{
		suspect: l,
		members: l.members(),
		dial: func(brisk bool) (candidate, error) {
			return dial(c.to, brisk, token, c.history)
		},
	}
	if winner, ok := t.run(c.ctx).(*link); ok && winner != l {
		c.moveTo(winner)
	} else {
		c.acquit()
	}
}

func (c *links) acquit() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inDoubt = false
	c.acquitted = time.Now()
}

// moveTo makes the spare the link of now. Calls on the old one end and are made again on the spare, watches end.
func (c *links) moveTo(spare *link) {
	c.mu.Lock()
	old := c.cur
	spare.pulse.Expect(old.pulse.RoundTrip())
	c.cur, c.inDoubt = spare, false
	c.mu.Unlock()
	old.leave()
	c.running.Go(old.close)
}
