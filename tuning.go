package discov

import "time"

// The defaults and bounds of what a user can set.
const (
	// defaultTTL is go-zero's: long enough for a restart of etcd, short enough for callers of a process that died.
	defaultTTL = 10 * time.Second
	// defaultTimeout bounds a call of the user's.
	defaultTimeout = 5 * time.Second
	// minTimeout leaves room for a connection, a grant and a put on one network.
	minTimeout = 100 * time.Millisecond
	// mostTTLs bounds a timeout by the TTL. A timeout is to be five round trips, or eight with TLS or an account, and half of
	// it is for one request: over a link for which it has to be more than ten TTLs, a round trip takes longer than the TTL,
	// and no lease can be kept.
	mostTTLs = 10
)

// A first registration.
const (
	// One that fails leaves this share of its bound to the clean-up, and cleanUpAtLeast when the caller has given up.
	cleanUpShare   = 10
	cleanUpAtLeast = 50 * time.Millisecond
	// connectAtOnce is how long a start in the background waits for its client, to return why none can be made.
	connectAtOnce = 50 * time.Millisecond
)

// How often the goroutine tries.
const (
	// reconcileRounds bounds the writes, values and leases that may change under one reconcile.
	reconcileRounds = 5
	// What happens within calm of the time before is dealt with in pauses: a key that is put in doubt more than quickDoubts
	// times in a row, so that somebody who deletes it as soon as it is there costs etcd no more than ten writes and then one
	// for each pause; and reconnects while paused.
	calm        = time.Second
	quickDoubts = 10
	// tooLargeAgain is when a value that is too large for etcd is sent again: its limit may have been raised.
	tooLargeAgain = time.Minute
)

// Leases that are to be gone.
const (
	// sweepEvery is when to try again to revoke what is left.
	sweepEvery = 3 * time.Second
	// strayLeases is how many leases that were asked for without an answer there may be when another one is asked for
	// (because: an etcd that granted without answering had one more after each try).
	strayLeases = 2
	// recentLeases is how many IDs are tried where it cannot be found out which of them etcd has: for an account that may not
	// read its key.
	recentLeases = 16
)

// Two instances with one id.
const (
	// A key that is free again after another instance has held it is taken at once the first time, and then after fillLeast,
	// twice that and so on, up to fillMost, until quietTime has passed: a twin that crashes again and again is left alone for a
	// while, but never has the key to itself (because: one that had crashed six times kept the key free for 55 s, when all that
	// was taken back was bounded by overMost).
	fillLeast = time.Second
	fillMost  = 10 * time.Second
	// A key that is there is put over at most overMost times in quietTime: two instances with one id would fight for ever.
	overMost  = 2
	quietTime = time.Minute
)

// What users are told.
const (
	// eventsKept bounds the events that wait for a slow observer.
	eventsKept = 256
	// An observer or a logger that takes longer than slowObserver is a line in the log.
	slowObserver = time.Second
	// An outage is in the log when it begins and ends, and meanwhile after firstReminder, then less and less often, until every
	// reminders: ten lines in the first hour.
	firstReminder = time.Minute
	reminders     = 10 * time.Minute
	// The lines of trouble of all Publishers on one connection: this many at once, then one for each linesRefill.
	linesBurst  = 20
	linesRefill = time.Minute
)

// requestStack is about what a request needs of a stack, which is 8 KB then.
const requestStack = 5 << 10
