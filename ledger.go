package discov

import (
	"cmp"
	"context"
	"fmt"
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

// drain is the time that callers are given to notice that the key is gone.
type drain struct {
	d     time.Duration
	found bool      // whether callers may have found the key since it was withdrawn last
	gone  time.Time // when a key that they may have found was withdrawn last, zero where none was
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

// stats is the Stats of now.
func (l *ledger) stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Stats{
		Registrations:    int(l.counters.registrations),
		Attempts:         int(l.counters.attempts),
		Failures:         int(l.counters.failures),
		Conflicts:        int(l.counters.conflicts),
		Losses:           map[Cause]int{},
		LastRegistration: l.counters.lastTook,
	}
	for cause := CauseLeaseEnded; int(cause) < len(causeNames); cause++ {
		s.Losses[cause] = int(l.counters.losses[cause])
	}
	switch {
	case l.held != nil:
		s.LastRenewal = l.held.Asked()
	case l.counters.renewed != 0:
		s.LastRenewal = time.Unix(0, l.counters.renewed)
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

// cutLocked ends the try of a first registration that is under way. The goroutine hears by its latch why.
func (l *ledger) cutLocked() {
	if l.cut != nil {
		l.cut()
		l.cut = nil
	}
}

// holdLocked notes the lease of now, and when the one before was renewed.
func (l *ledger) holdLocked(held *etcd.Keepalive) {
	if l.held != nil {
		l.counters.renewed = l.held.Asked().UnixNano()
	}
	l.held = held
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

// clearLeaseLocked notes that no lease of ours can be left.
func (l *ledger) clearLeaseLocked() {
	l.withdrawn = true
	l.holdLocked(nil)
	l.status.Lease, l.status.TTL, l.status.Until = 0, 0, time.Time{}
	if l.drain != nil && l.drain.found {
		l.drain.found, l.drain.gone = false, time.Now()
	}
}

// endHealthLocked ends the health checks, and forgets what they have told.
func (l *ledger) endHealthLocked() {
	if l.endHealth != nil {
		l.endHealth()
		l.endHealth = nil
	}
	if l.wish.illness != nil {
		l.wish.clearIll()
	}
}

func (l *ledger) finishStopLocked() {
	if l.status.State == StateRegistering || l.status.State == StatePublished {
		l.enterLocked(StateWithdrawing, nil)
	}
	l.enterLocked(StateStopped, l.outcome)
}
