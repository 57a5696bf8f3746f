package discov

import (
	"context"
	"errors"
)

// Run registers, keeps the key in etcd until ctx is done or the Publisher is stopped, and withdraws it, which takes no longer
// than the timeout plus the drain of [WithDrain]. It returns nil once the key is gone, a *WithdrawError if that could not be
// confirmed, ErrStopped if it was stopped before the key was registered, and what KeepAlive returns if the key could not be
// registered within the timeout, in which case Run may be called again. It suits errgroup and signal.NotifyContext:
//
//	group.Go(func() error { return pub.Run(ctx) })
func (p *Publisher) Run(ctx context.Context) error {
	p.ensureMade()
	first, cancel := context.WithTimeout(ctx, p.opts.timeout)
	err := p.KeepAliveContext(first)
	cancel()
	isOver := ctx.Err() != nil && errors.Is(err, ctx.Err())
	switch {
	case err == nil, isOver:
	case errors.Is(err, ErrStopped):
		_ = p.StopContext(context.WithoutCancel(ctx)) // who has stopped it hears how that ends
		return err
	default:
		return err
	}
	select {
	case <-ctx.Done():
	case <-p.wish.stop.Done():
	}
	return p.StopContext(context.WithoutCancel(ctx))
}
