package discov

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/discov-go/discov/internal/backoff"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// A call without an answer for suspectAfter makes its token suspect. It hangs when an answer to a question with it comes
// later than one to the same without it, by hangsAfter or half the time of that. It is asked again every suspectAgain.
const (
	suspectAfter = 200 * time.Millisecond
	hangsAfter   = 300 * time.Millisecond
	suspectAgain = 500 * time.Millisecond
)

// errTokenHangs ends a call whose token is found to hang.
var errTokenHangs = errors.New("etcd lets calls with the token wait")

// token is what etcd knows a user by.
type token struct {
	text  string
	hangs context.Context // done when it is found to hang
	drop  context.CancelFunc
}

// noToken is that of a call without one, which never hangs.
var noToken = &token{hangs: context.Background()}

func newToken(text string) *token {
	if text == "" {
		return noToken
	}
	t := &token{text: text}
	t.hangs, t.drop = context.WithCancel(context.Background())
	return t
}

// question is the key, in a context, of a call that finds out about the token. Its value says whether it is made with it.
type question struct{}

// unlessItHangs makes a call with the token, and ends it when the token is found to hang.
func (a *account) unlessItHangs(ctx context.Context, used *token, call func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(used.hangs, func() { cancel(errTokenHangs) })()
	defer a.suspect(ctx, used)()
	err := call(ctx)
	if err != nil && errors.Is(context.Cause(ctx), errTokenHangs) {
		return errTokenHangs
	}
	return err
}

// suspect checks the token when what was asked with it has no answer for long. The function that it returns is to be
// called once there is one.
func (a *account) suspect(ctx context.Context, used *token) (answered func()) {
	if a == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	checked := make(chan struct{})
	late := time.AfterFunc(suspectAfter, func() {
		defer close(checked)
		a.check(ctx, used)
	})
	return func() {
		cancel()
		if !late.Stop() {
			<-checked
		}
	}
}

// check compares the token with none, as often as may be, and drops it where it hangs.
func (a *account) check(ctx context.Context, used *token) {
	for ctx.Err() == nil {
		wait, current := a.turn(used)
		switch {
		case !current:
			return
		case wait > 0:
			backoff.Pause(ctx, wait)
		case a.isHanging(ctx):
			a.dropHanging(used)
		}
	}
}

// turn is how long the token is not to be checked yet; where that is zero, the turn is the caller's.
func (a *account) turn(used *token) (wait time.Duration, current bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	wait = max(0, time.Until(a.checked.Add(suspectAgain)))
	if wait == 0 {
		a.checked = time.Now()
	}
	return wait, used != noToken && a.token == used
}

func (a *account) dropHanging(used *token) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.token == used {
		used.drop()
		a.forgetLocked()
	}
}

// isHanging asks etcd the same with the token and without: what each member answers by itself. With several members, one
// that is silent must not make the token look bad, so each is likely to be asked.
func (a *account) isHanging(ctx context.Context) bool {
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	times := 2*len(a.link.client.Endpoints()) - 1
	ask := func(withToken bool) (answers <-chan struct{}) {
		answered := make(chan struct{}, times)
		kv := pb.NewKVClient(a.link.client.ActiveConnection())
		for range times {
			asking.Go(func() {
				if isAnswered(context.WithValue(ctx, question{}, withToken), kv) {
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
