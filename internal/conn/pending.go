package conn

import (
	"sync"
	"time"
)

// pending is a request that has no answer yet. One timer a link looks after all of them: most are answered long before
// there is anything to do.
type pending struct {
	// cancel ends the request, when the link is left.
	cancel func()
	// suspect puts the link in doubt, each time that patience has passed. It returns true if that is to be done half as often
	// from then on.
	suspect  func() bool
	patience time.Duration
	doubt    time.Time // when patience has passed next
	// repeat makes the request again, when pause has passed, twice that, four times that and so on.
	repeat func()
	pause  time.Duration
	began  time.Time
	again  time.Time // when to repeat it next
}

// attendant looks after the requests that are pending on a link.
type attendant struct {
	mu    sync.Mutex
	left  bool
	these map[*pending]struct{}
	timer *time.Timer // nil while none is set
	due   time.Time   // when it is
}

// attend looks after a request, until done is called.
func (a *attendant) attend(one *pending) (done func()) {
	now := time.Now()
	one.began, one.doubt, one.again = now, now.Add(one.patience), now.Add(one.pause)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.left {
		one.cancel()
		return func() {}
	}
	if a.these == nil {
		a.these = map[*pending]struct{}{}
	}
	a.these[one] = struct{}{}
	a.setLocked(now, one.due())
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.these, one)
	}
}

// due returns when there is something to do next.
func (one *pending) due() time.Time {
	if one.again.Before(one.doubt) {
		return one.again
	}
	return one.doubt
}

// setLocked sets the timer, unless it is due before.
func (a *attendant) setLocked(now, due time.Time) {
	if a.timer != nil && !due.Before(a.due) {
		return
	}
	if a.timer != nil {
		a.timer.Stop()
	}
	a.due = due
	a.timer = time.AfterFunc(max(due.Sub(now), lookAfterLeast), a.look)
}

// look does what is due.
func (a *attendant) look() {
	now := time.Now()
	var doubted, repeated []*pending
	a.mu.Lock()
	a.timer = nil
	for one := range a.these {
		if !now.Before(one.doubt) {
			one.doubt = now.Add(one.patience)
			doubted = append(doubted, one)
		}
		if !now.Before(one.again) {
			one.again = now.Add(now.Sub(one.began))
			repeated = append(repeated, one)
		}
		a.setLocked(now, one.due())
	}
	a.mu.Unlock()
	for _, one := range repeated {
		one.repeat()
	}
	for _, one := range doubted {
		if !one.suspect() {
			continue
		}
		a.mu.Lock()
		one.patience *= 2
		a.mu.Unlock()
	}
}

// cancelAll ends all requests, those of now and those to come.
func (a *attendant) cancelAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.left = true
	for one := range a.these {
		one.cancel()
	}
	if a.timer != nil {
		a.timer.Stop()
		a.timer = nil
	}
}
