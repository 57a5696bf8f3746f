package discov

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/discov-go/discov/internal/etcd"
)

// ledger is what the calls on a Publisher and its goroutine share, under one lock, and where calls wait.
type ledger struct {
	prefix string // the key as the user gave it; nobody writes it
	teller *teller

	mu sync.Mutex // guards all below

	wish     wish
	status   Status // all but the value, which is the wish's
	counters counters
	changed  wakeup // woken when anything that a call waits for has changed

	running   bool   // whether a KeepAlive is under way or in effect
	clearing  bool   // whether the goroutine withdraws what a KeepAlive that failed has left
	withdrawn bool   // whether no lease of ours can be left in etcd
	warned    bool   // whether the log has been told that nobody can reach the value
	cut       func() // ends the try of a first registration that is under way; nil where none is
	endHealth func() // ends the health checks; nil where there are none
	next      *start // a KeepAlive that came while clearing, nil if none did
	nextCame  *latch // set with it
	drain     *drain // nil where nobody waits for callers to notice
	outcome   error  // what Stop could not withdraw

	taken     uint64 // the updates when the goroutine took the value last
	published uint64 // the updates when etcd held the latest value last
	rejected  uint64 // the updates when etcd refused a value for its size last

	family family          // of all lease IDs; the goroutine's, but kept here from one to the next
	held   *etcd.Keepalive // the lease of now, nil where there is none
}

// start is a call of KeepAlive, which the goroutine answers once.
type start struct {
	bound    context.Context // of the call, whose deadline is there for the clean-up, too
	answered latch           // set by the answer, which is err
	err      error
}

func newStart(bound context.Context) *start {
	return &start{bound: bound, answered: newLatch()}
}

// newLedger returns the ledger of a Publisher whose full key may be known already.
func newLedger(prefix, key, value string, t *teller) *ledger {
	return &ledger{
		prefix:    prefix,
		teller:    t,
		wish:      newWish(value),
		status:    Status{State: StateIdle, Since: time.Now(), Key: key},
		withdrawn: true,
		family:    newFamily(),
	}
}

func (l *ledger) refused(call string, err error) error {
	return fmt.Errorf("discov: %s %s: %w", call, l.prefix, err)
}

// nameLocked is the full key, or what is known of it.
func (l *ledger) nameLocked() string { return cmp.Or(l.status.Key, l.prefix) }

// snapshot is the Status of now.
func (l *ledger) snapshot() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.status
	s.Value = l.wish.value
	if l.held != nil {
		s.Until = l.held.Until()
	}
	return s
}

// warnOfValueLocked tells once that nobody can call the address that is published.
func (l *ledger) warnOfValueLocked() {
	if !l.warned && isNowhere(l.wish.value) {
		l.warned = true
		l.teller.warnAside("discov: the value is an address that others cannot call", "key", l.prefix, "value", l.wish.value)
	}
}

// isNowhere reports whether a value is an address to listen on, not one to call: ":8080", "0.0.0.0:8080" or "[::]:8080".
func isNowhere(value string) bool {
	host, port, err := net.SplitHostPort(value)
	if _, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// What follows is for both.

// undrawn hears of a change of state, from one to another, that the diagram lacks. That is a bug: tests fail on it.
var undrawn = func(_, _ State) {}

// enterLocked notes a change of state, or a failure within one, and tells the log and the observer. A change that the
// diagram lacks takes place all the same, so that the Publisher goes on; the log has it as an error.
func (l *ledger) enterLocked(to State, err error) {
	from := l.status.State
	if err != nil || isAskedFor(to) {
		l.status.Err = err
	}
	if from != to {
		l.status.State, l.status.Since = to, time.Now()
	}
	l.wakeLocked()
	l.counters.enter(from, to)
	if from != to || err != nil {
		l.teller.add(Event{
			Time: time.Now(), From: from, To: to, Key: l.status.Key, Lease: l.status.Lease, Cause: kindOf(err), Err: err,
		})
	}
	if from != to && !isDrawn(from, to) {
		undrawn(from, to)
	}
}

// isAskedFor reports whether the user asks for a state, so that no failure of before counts any more once it is reached.
func isAskedFor(state State) bool {
	return state == StatePublished || state == StatePaused || state == StateUnhealthy || state == StateStopped
}

// noteErrorLocked notes a failure that is told later, or was.
func (l *ledger) noteErrorLocked(err error) {
	l.status.Err = err
	l.wakeLocked()
}

// wakeLocked wakes the calls that wait, since something has changed.
func (l *ledger) wakeLocked() { l.changed.wake() }

// What follows is for the goroutine.

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

// cutLocked ends the try of a first registration that is under way. The goroutine hears by its latch why.
func (l *ledger) cutLocked() {
	if l.cut != nil {
		l.cut()
		l.cut = nil
	}
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

// holdLocked notes the lease of now, and when the one before was renewed.
func (l *ledger) holdLocked(held *etcd.Keepalive) {
	if l.held != nil {
		l.counters.renewed = l.held.Asked().UnixNano()
	}
	l.held = held
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

// restLocked enters the state of a key that is withheld, with a failure that there may be, or else the health check's.
func (l *ledger) restLocked(err error) {
	switch {
	case l.wish.paused:
		l.enterLocked(StatePaused, err)
	case l.wish.illness != nil:
		l.enterUnhealthyLocked(err)
	default: // it is wanted again, which the goroutine hears in a moment
	}
}

// enterUnhealthyLocked tells the health check's failure once.
func (l *ledger) enterUnhealthyLocked(err error) {
	if l.status.State != StateUnhealthy || err != nil {
		l.enterLocked(StateUnhealthy, cmp.Or(err, l.wish.illness))
	}
}

func (l *ledger) isAtRestLocked() bool {
	return l.status.State == StatePaused || l.status.State == StateUnhealthy
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

func (l *ledger) noteWithdrawn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clearLeaseLocked()
}

// clearLeaseLocked notes that no lease of ours can be left.
func (l *ledger) clearLeaseLocked() {
	l.withdrawn = true
	l.holdLocked(nil)
	l.status.Lease, l.status.TTL, l.status.Until = 0, 0, time.Time{}
	if l.drain != nil && l.drain.found {
		l.drain.found, l.drain.gone = false, time.Now()
	}
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

func (l *ledger) finishStopLocked() {
	if l.status.State == StateRegistering || l.status.State == StatePublished {
		l.enterLocked(StateWithdrawing, nil)
	}
	l.enterLocked(StateStopped, l.outcome)
}
