package conn

import (
	"context"
	"errors"
	"time"

	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/etcd"
	"google.golang.org/grpc/metadata"
)

// ask makes one request, within its bound if it has one. It waits for a connection first then, which may take longer.
func ask[T any](ctx context.Context, c *requester, what request[T]) (answer T, err error) {
	ctx = metadata.NewOutgoingContext(ctx, headers)
	bound, cancel, err := c.begin(ctx)
	if err == nil {
		answer, err = do(bound, c, what)
		c.countVain(ctx, bound, err)
		cancel()
	}
	return answer, etcd.Plain(err)
}

// begin returns the context of one request, once there is a connection if it is bounded.
func (c *requester) begin(ctx context.Context) (bound context.Context, cancel context.CancelFunc, err error) {
	if c.bounds.Call == 0 {
		return ctx, func() {}, nil
	}
	if !c.links.isReady() {
		if err := c.longer(ctx, c.await); err != nil {
			return nil, nil, err
		}
	}
	bound, cancel = context.WithTimeout(ctx, c.bounds.Call)
	return bound, cancel, nil
}

// countVain counts what had bound where that was in vain, and reports whether it was: not where ctx was done.
func (c *requester) countVain(ctx, bound context.Context, err error) bool {
	if err == nil || !errors.Is(bound.Err(), context.DeadlineExceeded) || ctx.Err() != nil {
		return false
	}
	c.misses.Add(1)
	return true
}

// longer bounds a wait for a connection: longer and longer while it is in vain.
func (c *requester) longer(ctx context.Context, wait func(context.Context) error) error {
	d := max(c.bounds.Call, min(c.bounds.Call<<min(c.misses.Load(), 10), longestWait))
	bound, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	err := wait(bound)
	switch {
	case err == nil:
		c.misses.Store(0)
	case c.countVain(ctx, bound, err):
		return &etcd.UnsentError{Err: err}
	}
	return err
}

// await waits for a connection.
func (c *requester) await(ctx context.Context) error {
	_, err := do(ctx, c, request[struct{}]{asksNothing: true, send: func(ctx context.Context, l *link) (struct{}, error) {
		return struct{}{}, l.await(ctx)
	}})
	return etcd.Plain(err)
}

// awaitSound waits for a connection that is not silent.
func (c *requester) awaitSound(ctx context.Context) error {
	l := c.links.enter()
	err := l.pulse.AwaitSound(ctx)
	l.calls.Done()
	if err != nil || c.links.isReady() {
		return err
	}
	return c.await(ctx)
}

// Ready waits until there is a connection that is not silent.
func (c *requester) Ready(ctx context.Context) error {
	l := c.links.link()
	isReady := l.ready.isReady() && !l.isClosedByCaller()
	switch {
	case isReady && (c.bounds.Call == 0 || l.pulse.Silence() == nil):
		return ctx.Err()
	case c.bounds.Call == 0:
		return c.await(ctx)
	default:
		return c.longer(ctx, c.awaitSound)
	}
}

// Reconnected waits until the connection is another one than now. It returns false if ctx is done first.
func (c *requester) Reconnected(ctx context.Context) bool {
	return c.onThisLink(ctx, func(still context.Context, l *link) {
		if l.ready.awaitAnother(still) != nil {
			<-still.Done() // there can be none any more
		}
	})
}

// Pause waits for d, or until the connection is replaced. It returns false if ctx is done first.
func (c *requester) Pause(ctx context.Context, d time.Duration) bool {
	return c.onThisLink(ctx, func(still context.Context, _ *link) { backoff.Pause(still, d) })
}

// onThisLink waits, at most for as long as the link of now is that. It returns false if ctx is done first.
func (c *requester) onThisLink(ctx context.Context, wait func(context.Context, *link)) bool {
	l := c.links.enter()
	defer l.calls.Done()
	still, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.left, cancel)()
	wait(still, l)
	return ctx.Err() == nil
}
