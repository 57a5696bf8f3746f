package discov

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/discov-go/discov/internal/etcd"
)

var (
	// ErrStarted is returned by KeepAlive when an earlier KeepAlive is in progress or in effect.
	ErrStarted = errors.New("already started")
	// ErrStopped is returned by every call after Stop, and by calls that Stop interrupts.
	ErrStopped    = errors.New("stopped")
	errNotStarted = errors.New("not started")
	// ErrSuperseded is returned by PauseContext when Resume is called before it is done, and by ResumeContext when Pause
	// is.
	ErrSuperseded = errors.New("superseded by a later call")
	// ErrConflict is returned by ResumeContext and Update when another instance's lease holds the key.
	ErrConflict = errors.New("the key is held by another instance")
	// ErrClientClosed is returned, and is in Status.Err, when the client given with WithClient has been closed. The
	// Publisher cannot recover from that; stop it and make another one.
	ErrClientClosed = etcd.ErrClientClosed
)

// These errors are returned by KeepAlive for bad input, before anything is dialled. All that is wrong is reported at once,
// joined; each error names the input and wraps one of these.
var (
	// ErrEndpoints is returned when there is no endpoint, or when one is not of the form host:port, http(s)://host:port or
	// unix(s)://path.
	ErrEndpoints = errors.New("bad endpoints")
	// ErrKey is returned when the key is empty.
	ErrKey = errors.New("bad key")
	// ErrValue is returned when the value is empty, and by GRPCValue for one that cannot be made.
	ErrValue = errors.New("bad value")
	// ErrID is returned when the id is not positive.
	ErrID = errors.New("bad id")
	// ErrTTL is returned when the TTL is not a whole number of seconds, from 1 s to 9,000,000,000 s, etcd's own bound.
	ErrTTL = errors.New("bad TTL")
	// ErrTimeout is returned when the timeout is shorter than 100 ms, or longer than ten times the TTL.
	ErrTimeout = errors.New("bad timeout")
	// ErrAccount is returned when the account has a user without a password, or a password without a user.
	ErrAccount = errors.New("bad account")
	// ErrTLS is returned when a TLS file is missing, unreadable or not PEM, or when an endpoint has the scheme http although
	// TLS is configured.
	ErrTLS = errors.New("bad TLS")
	// ErrOptions is returned when an option or its argument is nil, when two options exclude each other, when a drain or a
	// field of a HealthPolicy is negative, and by a Publisher that was not made by NewPublisher.
	ErrOptions = errors.New("bad options")
	// ErrUnknownField is returned when a configuration file has a field that Config does not have. It is usually a typo.
	ErrUnknownField = errors.New("unknown field")
)

// WithdrawError is returned when etcd did not confirm within the bound of the call that the key is gone. Its lease is no
// longer renewed, and the withdrawal is retried in the background: after Pause until Resume, while the health check fails until
// it succeeds, after Stop for one TTL, and after a KeepAlive that failed until the key has expired.
type WithdrawError struct {
	// Key is the full key.
	Key string
	// Until is when the key expires by itself, unless etcd restarts before, which starts its TTL anew. It is zero if no
	// lease was known.
	Until time.Time
	// Err is the cause.
	Err error
}

func newWithdrawError(key string, until time.Time, err error) *WithdrawError {
	return &WithdrawError{Key: key, Until: until, Err: err}
}

// Error implements error.
func (e *WithdrawError) Error() string {
	if e.Until.IsZero() {
		return fmt.Sprintf("discov: withdraw %s: %v", e.Key, e.Err)
	}
	return fmt.Sprintf("discov: withdraw %s: it is gone by %s at the latest: %v", e.Key, e.Until.Format(time.RFC3339), e.Err)
}

// Unwrap returns the cause.
func (e *WithdrawError) Unwrap() error { return e.Err }

// causeOf returns why ctx is done: its cause, and its own error where the cause does not wrap that.
func causeOf(ctx context.Context) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, ctx.Err()) {
		return cause
	}
	return fmt.Errorf("%w: %w", cause, ctx.Err())
}
