package auth

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/etcd"
	"google.golang.org/grpc"
)

// errTokenHangs ends a call whose token is found to hang.
var errTokenHangs = errors.New("etcd lets calls with the token wait")

// unlessItHangs makes a call with the token, and ends it when the token is found to hang.
func (a *Account) unlessItHangs(ctx context.Context, cc *grpc.ClientConn, used *token, call func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(used.hangs, func() { cancel(errTokenHangs) })()
	defer a.suspect(ctx, cc, used)()
	err := call(ctx)
	if err != nil && errors.Is(context.Cause(ctx), errTokenHangs) {
		return errTokenHangs
	}
	return err
}

// suspect checks the token when what was asked with it has no answer for long. The function that it returns is to be
// called once there is one.
func (a *Account) suspect(ctx context.Context, cc *grpc.ClientConn, used *token) (answered func()) {
	if used == noToken {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	checked := make(chan struct{})
	late := time.AfterFunc(max(suspectAfter, a.on.Late()), func() {
		defer close(checked)
		a.check(ctx, cc, used)
	})
	return func() {
		cancel()
		if !late.Stop() {
			<-checked
		}
	}
}

// check compares the token with none, as often as may be, and drops it where it hangs.
func (a *Account) check(ctx context.Context, cc *grpc.ClientConn, used *token) {
	for ctx.Err() == nil {
		wait, current := a.turn(used)
		switch {
		case !current:
			return
		case wait > 0:
			backoff.Pause(ctx, wait)
		case a.isHanging(ctx, cc):
			a.drop(used)
		}
	}
}

// turn returns for how long the token is not to be checked yet; where that is zero, the turn is the caller's.
func (a *Account) turn(used *token) (wait time.Duration, current bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	wait = max(0, time.Until(a.checked.Add(suspectAgain)))
	if wait == 0 {
		a.checked = time.Now()
	}
	return wait, used != noToken && a.token == used
}

// drop ends what waits with the token, which then gets another.
func (a *Account) drop(used *token) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.token == used {
		used.drop()
		a.forgetLocked()
	}
}

// isHanging asks etcd the same with the token and without: what each member answers by itself. With several members, one
// that is silent must not make the token look bad, so each is likely to be asked.
func (a *Account) isHanging(ctx context.Context, cc *grpc.ClientConn) bool {
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	times := 2*a.on.Members - 1
	ask := func(withToken bool) (answers <-chan struct{}) {
		answered := make(chan struct{}, times)
		for range times {
			asking.Go(func() {
				if IsAnswered(context.WithValue(ctx, question{}, withToken), cc) {
					answered <- struct{}{}
				}
			})
		}
		return answered
	}
	began := time.Now()
	with, without := ask(true), ask(false)
	select {
	case <-without:
	case <-with:
		return false
	case <-ctx.Done():
		return false
	}
	late := time.NewTimer(max(hangsAfter, time.Since(began)/2))
	defer late.Stop()
	select {
	case <-with:
		return false
	case <-ctx.Done():
		return false
	case <-late.C:
		return true
	}
}

// lookBack finds out whether etcd was wiped or restored where the token is doubtful, and drops the token then: what is asked
// with it would hang (because: where only that told, the key was away for up to 1 s, and for 1.7 s where the path had swallowed
// as well). One look is under way at a time.
func (a *Account) lookBack(cc *grpc.ClientConn, used *token) {
	if !used.doubtful.Load() {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if used == noToken || a.looking || a.ctx.Err() != nil {
		return
	}
	a.looking = true
	used.doubtful.Store(false)
	a.running.Go(func() {
		wentBack, err := a.on.WentBack(WithoutToken(a.ctx), cc)
		switch {
		case wentBack:
			a.drop(used)
		case err != nil && !etcd.IsFinal(etcd.Plain(err)):
			used.doubtful.Store(true)
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.looking = false
	})
}
