package discov

import "time"

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
