package conn

import (
	"sync"
	"time"
)

// attended is a request that has no answer yet. Its methods must not wait for anything.
type attended interface {
	// giveUp ends the request, when the link is left.
	giveUp()
	// suspect puts the link in doubt. It returns true if that is to be done half as often from then on.
	suspect() bool
	// repeat makes the request again.
	repeat()
}

// pending is when there is something to do for a request. One timer a link looks after all of them: most are answered long
// before.
type pending struct {
	attended
	began    time.Time
	patience time.Duration // after which to suspect the link, again and again
	doubtAt  time.Time     // when to do so next
	pause    time.Duration // after which to repeat the request; after twice that again, after four times that and so on
	repeatAt time.Time     // when to do so next
}

// attendant looks after the requests that are pending on a link. The zero attendant is ready to use.
type attendant struct {
	mu    sync.Mutex
	left  bool
	these map[*pending]struct{}
	timer *time.Timer // nil while none is set
	due   time.Time   // when it is
}

// attend looks after a request, until dismiss has returned.
func (a *attendant) attend(one *pending) {
	now := time.Now()
	one.began, one.doubtAt, one.repeatAt = now, now.Add(one.patience), now.Add(one.pause)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.left {
		one.giveUp()
		return
	}
	if a.these == nil {
		a.these = map[*pending]struct{}{}
	}
	a.these[one] = struct{}{}
	a.setLocked(now, one.due())
}

func (a *attendant) dismiss(one *pending) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.these, one)
}

// due returns when there is something to do next.
func (one *pending) due() time.Time {
	if one.repeatAt.Before(one.doubtAt) {
		return one.repeatAt
	}
	return one.doubtAt
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

// look does what is due. Nothing of that waits for anything, so that the lock is held: once dismiss has returned, it
// is over.
func (a *attendant) look() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.timer = nil
	if a.left {
		return
	}
	now := time.Now()
	for one := range a.these {
		if !now.Before(one.repeatAt) {
			one.repeatAt = now.Add(now.Sub(one.began))
			one.repeat()
		}
		if !now.Before(one.doubtAt) {
			one.doubtAt = now.Add(one.patience)
			if one.suspect() {
				one.patience *= 2
			}
		}
		a.setLocked(now, one.due())
	}
}

// cancelAll ends all requests, those of now and those to come.
func (a *attendant) cancelAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.left = true
	for one := range a.these {
		one.giveUp()
	}
	if a.timer != nil {
		a.timer.Stop()
		a.timer = nil
	}
}
