package discov

import (
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// State is the state of a Publisher. The diagram at [Publisher] shows the transitions between states.
type State int

const (
	// StateIdle means that KeepAlive has not been called, or that it failed.
	StateIdle State = iota
	// StateRegistering means that the key is being put into etcd, for the first time or again.
	StateRegistering
	// StatePublished means that the key is in etcd, as far as can be known.
	StatePublished
	// StateConflict means that the key is held by another instance's lease.
	StateConflict
	// StateWithdrawing means that the key is being withdrawn, and that etcd has not confirmed yet that it is gone.
	StateWithdrawing
	// StatePaused means that the key is withdrawn until Resume is called.
	StatePaused
	// StateUnhealthy means that the key is withdrawn until the health check of WithHealthCheck succeeds.
	StateUnhealthy
	// StateStopped means that Stop has finished. It is final.
	StateStopped
)

var stateNames = [...]string{"idle", "registering", "published", "conflict", "withdrawing", "paused", "unhealthy", "stopped"}

// MarshalText returns the name of the state, as String does.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String returns the name of the state in lower case, as in the diagram.
func (s State) String() string {
	if s < 0 || int(s) >= len(stateNames) {
		return fmt.Sprintf("State(%d)", int(s))
	}
	return stateNames[s]
}

// transitions is the diagram at [Publisher].
var transitions = map[State][]State{
	StateIdle:        {StateRegistering, StateWithdrawing, StatePaused, StateUnhealthy, StateStopped},
	StateRegistering: {StatePublished, StateConflict, StateWithdrawing, StateIdle},
	StatePublished:   {StateRegistering, StateConflict, StateWithdrawing},
	StateConflict:    {StateRegistering, StatePublished, StateWithdrawing},
	StateWithdrawing: {StatePaused, StateUnhealthy, StateStopped, StateRegistering, StateIdle},
	StatePaused:      {StateRegistering, StateUnhealthy, StateIdle, StateStopped},
	StateUnhealthy:   {StateRegistering, StatePaused, StateIdle, StateStopped},
}

// isDrawn reports whether the diagram has a way between two states. A change of state without one is a bug.
func isDrawn(from, to State) bool { return slices.Contains(transitions[from], to) }

// Status is a snapshot of a Publisher.
type Status struct {
	// State is the current state.
	State State
	// Since is when the Publisher entered that state.
	Since time.Time
	// Key is the full key. If it ends with the lease ID, it is empty until a lease is granted.
	Key string
	// Value is the latest value that was given to NewPublisher or Update. It may not be in etcd yet.
	Value string
	// Lease is the lease of the key, or zero if there is none. In StateConflict it is kept until the key is free.
	Lease clientv3.LeaseID
	// TTL is the TTL that etcd granted, which may be longer than the one that was asked for.
	TTL time.Duration
	// Until is when the lease expires unless it is renewed, by the clock of this process. In StatePublished the key is
	// certain to exist until then; in StateWithdrawing and StateIdle it may still exist until then. It is zero if there is
	// no lease.
	Until time.Time
	// Err is the last failure. It is nil once the state that was asked for is reached. In StateUnhealthy it is why the check
	// failed.
	Err error
}

// Event is a change of state, or, if From and To are equal, a failure that changed nothing.
type Event struct {
	Time     time.Time
	From, To State
	Key      string
	Lease    clientv3.LeaseID
	// Cause is the kind of failure that Err is. It is zero if Err is nil.
	Cause Cause
	// Err is the reason. It is nil if the change was asked for, or if all is well.
	Err error
}
