package discov

import (
	"time"

	"github.com/discov-go/discov/internal/etcd"
)

// What the goroutine takes from the ledger, and notes in it.

func (l *ledger) enter(to State, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.enterLocked(to, err)
}

// heed returns what the user wants, and the latch that is set when that is something else. From then on etcd may have
// something of ours, if that is to publish.
func (l *ledger) heed() (want, latch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.heedLocked()
}

func (l *ledger) heedLocked() (want, latch) {
	now, latch := l.wish.now()
	if now == wantPublished {
		l.withdrawn = false
	}
	return now, latch
}

// isWanted reports whether the user wants the key published.
func (l *ledger) isWanted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	want, _ := l.wish.now()
	return want == wantPublished
}

// tryFirst heeds for a try of a first registration, which cut ends once the user wants something else.
func (l *ledger) tryFirst(cut func()) (want, latch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	return l.heedLocked()
}

// beginTry notes that what is new is being dealt with, and returns whether the user has decided to publish since the key was
// put last.
func (l *ledger) beginTry() (takeover bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch l.status.State {
	case StateIdle, StatePaused, StateUnhealthy, StateWithdrawing:
		l.enterLocked(StateRegistering, nil)
	}
	l.wish.clearNews()
	l.counters.attempts++
	l.counters.begin()
	return l.wish.takeover
}

// latest takes the value that the user wants. What else is new is left for the next try.
func (l *ledger) latest() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taken = l.wish.updates
	if l.drain != nil {
		l.drain.found = true // about to be
	}
	return l.wish.value
}

// outdated reports whether the user wants another value than the one that was taken.
func (l *ledger) outdated() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.taken != l.wish.updates
}

// isNew reports whether there is a value, or a decision, that the goroutine has not taken.
func (l *ledger) isNew() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.wish.isNew
}

// publishedLocked notes that etcd holds the value that was taken, or refused it with an error and holds the one before.
func (l *ledger) publishedLocked(takeover bool, refusal error) {
	l.wish.takeover = l.wish.takeover && !takeover
	if refusal == nil {
		l.published = l.taken
	} else {
		l.rejected = l.taken
	}
	l.enterLocked(StatePublished, refusal)
}

// conflictLocked tells of a conflict once, when it begins, and when it changes.
func (l *ledger) conflictLocked(err error) {
	if l.status.State != StateConflict || l.status.Err == nil || l.status.Err.Error() != err.Error() {
		l.enterLocked(StateConflict, err)
	}
}

// lost notes that the key is not there, or not right.
func (l *ledger) lost(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.status.State == StatePublished {
		l.enterLocked(StateRegistering, why)
	}
}

// noteLease notes a lease that was granted or, where it is nil, that the one before was lost.
func (l *ledger) noteLease(held *etcd.Keepalive) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holdLocked(held)
	l.status.Lease, l.status.TTL, l.status.Until = 0, 0, time.Time{}
	if held != nil {
		l.status.Lease, l.status.TTL = held.ID, held.TTL
	}
}

// noteUnconnected notes that a start in the background has no client yet.
func (l *ledger) noteUnconnected(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch now, _ := l.wish.now(); now {
	case wantPublished:
		l.enterLocked(StateRegistering, err)
	case wantWithheld:
		l.restLocked(err)
	case wantStopped: // which may be why
	}
}

// rest notes that the key is withdrawn, and stays so.
func (l *ledger) rest() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.restLocked(nil)
}

// withdrawing notes that the key is to go, which it does by itself at the time that is given, and why it has not.
func (l *ledger) withdrawing(gone time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.withdrawn:
		return
	case l.isAtRestLocked(): // a Resume was taken back before anything was begun
		if err != nil {
			l.noteErrorLocked(err)
		}
		return
	}
	l.holdLocked(nil)
	l.status.Until = gone
	l.enterLocked(StateWithdrawing, err)
}

func (l *ledger) isAtRestLocked() bool {
	return l.status.State == StatePaused || l.status.State == StateUnhealthy
}

func (l *ledger) noteWithdrawn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clearLeaseLocked()
}

// withdrawError is the error for a key that could not be withdrawn, and goes by itself at the time that is given.
func (l *ledger) withdrawError(gone time.Time, err error) *WithdrawError {
	l.mu.Lock()
	defer l.mu.Unlock()
	return newWithdrawError(l.nameLocked(), gone, err)
}

// finish ends the goroutine's part after Stop, with what could not be withdrawn.
func (l *ledger) finish(left error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endHealthLocked()
	if l.running, l.outcome = false, left; left == nil {
		l.clearLeaseLocked()
	}
	l.finishStopLocked()
}
