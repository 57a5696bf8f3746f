package discov

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/discov-go/discov/internal/etcd"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// Cause is the kind of a failure, for counters and labels. Its text is in snake case.
type Cause int

const (
	// CauseLeaseEnded means that the lease expired or was revoked.
	CauseLeaseEnded Cause = iota + 1
	// CauseKeyDeleted means that the key was deleted.
	CauseKeyDeleted
	// CauseKeyChanged means that the key was overwritten, or that another instance holds it.
	CauseKeyChanged
	// CauseStoreWentBack means that etcd was wiped or restored to an older state. It may look like CauseLeaseEnded, where it is
	// the lease that is missed first.
	CauseStoreWentBack
	// CauseUnreachable means that etcd could not be reached, did not answer, or could not serve the request.
	CauseUnreachable
	// CauseDenied means that etcd refused: for want of a permission, because of the account, for lack of space, or because the
	// value is too large.
	CauseDenied
	// CauseUnhealthy means that the health check failed, so that the key was withdrawn.
	CauseUnhealthy
)

var causeNames = [...]string{
	"none", "lease_ended", "key_deleted", "key_changed", "store_went_back", "unreachable", "denied", "unhealthy",
}

// String returns the name of the cause.
func (c Cause) String() string {
	if c < 0 || int(c) >= len(causeNames) {
		return fmt.Sprintf("Cause(%d)", int(c))
	}
	return causeNames[c]
}

// MarshalText returns the name of the cause, as String does.
func (c Cause) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// kindOf returns the Cause of a failure.
func kindOf(err error) Cause {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUnhealthy): // for whatever reason
		return CauseUnhealthy
	case errors.Is(err, context.Canceled):
		return 0
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return CauseLeaseEnded
	case errors.Is(err, errKeyGone):
		return CauseKeyDeleted
	case errors.Is(err, errKeyChanged), errors.Is(err, ErrConflict), errors.Is(err, errStillChanging):
		return CauseKeyChanged
	case errors.Is(err, etcd.ErrWentBack):
		return CauseStoreWentBack
	case etcd.IsFinal(err), etcd.IsTokenError(err):
		return CauseDenied
	default:
		return CauseUnreachable
	}
}

// signs are what has come to light, since the key was published last, about why it was lost.
type signs struct {
	wentBack bool
	key      Cause // how it was found to be wrong, zero where it was not
}

// note notes how a key was found that is not as it should be.
func (s *signs) note(seen etcd.Entry) {
	s.key = CauseKeyDeleted
	if seen.Exists() {
		s.key = CauseKeyChanged
	}
}

// causeOfLoss returns why the key was lost, or could not be confirmed: the last sign of a chain is not its cause. It is zero
// where nothing was lost.
func (r *registration) causeOfLoss(doubt, err error) Cause {
	switch {
	case r.signs.wentBack:
		return CauseStoreWentBack
	case r.leases.ended:
		return CauseLeaseEnded
	case r.signs.key != 0:
		return r.signs.key
	case isLoss(doubt):
		return kindOf(doubt)
	default:
		return kindOf(err)
	}
}

// Stats are the counters of a Publisher. Like those of database/sql.DBStats, they start with NewPublisher and never go down.
type Stats struct {
	// Registrations is the number of times that the key was put into etcd because it was missing or wrong, or, for an account
	// that may not read it, might have been.
	Registrations int
	// Attempts is the number of times that the Publisher tried to put or to confirm the key, and Failures the number of
	// attempts that failed. An attempt that a call cut short is no failure.
	Attempts, Failures int
	// Conflicts is the number of times that another instance was found to hold the key.
	Conflicts int
	// Losses is the number of times that a published key was lost, found to be wrong, or could not be confirmed, by cause. It
	// has an entry for every cause.
	Losses map[Cause]int

	// LastRenewal is the time at which the latest answered grant or renewal of a lease was sent. It is zero before the first.
	LastRenewal time.Time
	// LastRegistration is how long the latest registration took, from when it was asked for, or its loss was noticed, until the
	// key was in etcd.
	LastRegistration time.Duration
}

// counters are Stats as the ledger keeps them: small, since a process may have thousands.
type counters struct {
	registrations, attempts int64
	failures, conflicts     int32

	losses   [len(causeNames)]int32
	kept     bool      // whether the key is published, and no loss counted since
	began    time.Time // when the registration under way began, zero where there is none
	renewed  int64     // Unix time in nanoseconds, of leases that are not held any more
	lastTook time.Duration
}

// lose counts a loss of a key that was published, once until it is so again.
func (c *counters) lose(why Cause) {
	if c.kept && why != 0 {
		c.losses[why]++
		c.kept = false
	}
}

// begin notes that a registration is under way.
func (c *counters) begin() {
	if c.began.IsZero() {
		c.began = time.Now()
	}
}

// publish notes that etcd holds the key, and whether it had to be put.
func (c *counters) publish(put bool) {
	if put {
		c.lastTook = time.Since(c.began)
	}
	c.kept, c.began = true, time.Time{}
}

// settle notes that nothing is under way.
func (c *counters) settle() { c.kept, c.began = false, time.Time{} }

// enter notes a change of state.
func (c *counters) enter(from, to State) {
	switch {
	case to == StateConflict && from != to:
		c.conflicts++
	case to == StateRegistering:
		c.begin()
	case to == StateIdle, to == StatePaused, to == StateUnhealthy, to == StateStopped:
		c.settle()
	}
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
