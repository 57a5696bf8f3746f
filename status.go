package discov

import (
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A State is where a Publisher stands; the diagram at [Publisher] shows the ways between them.
type State int

const (
	// StateIdle is before KeepAlive, and after one that failed.
	StateIdle State = iota
	// StateRegistering is on the way to being registered, the first time or again.
	StateRegistering
	// StatePublished is with the key in etcd, as far as can be known.
	StatePublished
	// StateConflict is with the key held by another instance's lease.
	StateConflict
	// StateWithdrawing is with the key on its way out, until etcd has confirmed that it is gone.
	StateWithdrawing
	// StatePaused is with the key withdrawn, until Resume.
	StatePaused
	// StateStopped is the end.
	StateStopped
)

var stateNames = [...]string{"idle", "registering", "published", "conflict", "withdrawing", "paused", "stopped"}

// String is the state's name in lower case, as in the diagram.
func (s State) String() string {
	if s < 0 || int(s) >= len(stateNames) {
		return fmt.Sprintf("State(%d)", int(s))
	}
	return stateNames[s]
}

// transitions is the diagram at [Publisher].
var transitions = map[State][]State{
	StateIdle:        {StateRegistering, StateWithdrawing, StatePaused, StateStopped},
	StateRegistering: {StatePublished, StateConflict, StateWithdrawing, StateIdle},
	StatePublished:   {StateRegistering, StateConflict, StateWithdrawing},
	StateConflict:    {StateRegistering, StatePublished, StateWithdrawing},
	StateWithdrawing: {StatePaused, StateStopped, StateRegistering, StateIdle},
	StatePaused:      {StateRegistering, StateIdle, StateStopped},
}

// isDrawn reports whether the diagram has a way between two states. A change of state without one is a bug.
func isDrawn(from, to State) bool { return slices.Contains(transitions[from], to) }

// Status is a snapshot of a Publisher.
type Status struct {
	// State is where the Publisher stands.
	State State
	// Since is when it came to that state.
	Since time.Time
	// Key is the full key, empty before a lease ID that it ends with is known.
	Key string
	// Value is the latest value asked for.
	Value string
	// Lease is the lease that the key is put with, zero where there is none. In StateConflict it is kept for the time when
	// the key is free.
	Lease clientv3.LeaseID
	// TTL is what etcd granted, which may be more than was asked for.
	TTL time.Duration
	// Until is when the lease ends without a further renewal, by the clock of this process: until then the key is
	// certain to be there, or, in StateWithdrawing and StateIdle, not certain to be gone. Zero where there is no lease. In
	// StateConflict it tells of the lease alone.
	Until time.Time
	// Registrations counts how often the key was put into etcd where it was missing or wrong, or, for an account that may
	// not read it, might have been.
	Registrations int
	// Err is the last failure, nil once the state asked for was reached.
	Err error
}

// An Event tells a change of state, or a failure within one (then From and To are equal).
type Event struct {
	Time     time.Time
	From, To State
	Key      string
	Lease    clientv3.LeaseID
	// Err is why, nil where the user asked for it or all is well.
	Err error
}
