package discov

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/discov-go/discov/internal/etcd"
)

var (
	// ErrStarted is returned by KeepAlive while an earlier KeepAlive's registration is under way or kept.
	ErrStarted = errors.New("already started")
	// ErrStopped is returned by every call after Stop, and by a call that Stop cut short.
	ErrStopped    = errors.New("stopped")
	errNotStarted = errors.New("not started")
	// ErrSuperseded is returned by PauseContext when a Resume, and by ResumeContext when a Pause, came before it was
	// done.
	ErrSuperseded = errors.New("superseded by a later call")
	// ErrConflict is returned by calls that want the key in etcd while another instance's lease holds it.
	ErrConflict = errors.New("the key is held by another instance")
	// ErrClientClosed is returned, and told in Status, where the caller has closed the client given with WithClient. It can
	// never be used again; Stop the Publisher.
	ErrClientClosed = etcd.ErrClientClosed
)

// What KeepAlive returns for bad input, before anything is dialled: all that is wrong at once, joined, each naming the
// input and wrapping one of these.
var (
	// ErrEndpoints is returned when there are no endpoints, or when one is not host:port, http(s)://host:port or
	// unix(s)://path.
	ErrEndpoints = errors.New("bad endpoints")
	// ErrKey is returned when the key is empty.
	ErrKey = errors.New("bad key")
	// ErrValue is returned when the value is empty.
	ErrValue = errors.New("bad value")
	// ErrID is returned when an id is not positive.
	ErrID = errors.New("bad id")
	// ErrTTL is returned when a TTL is not a whole number of seconds, from 1 s to 9,000,000,000 s, etcd's own bound.
	ErrTTL = errors.New("bad TTL")
	// ErrTimeout is returned when a timeout is shorter than 100 ms, or longer than ten times the TTL.
	ErrTimeout = errors.New("bad timeout")
	// ErrAccount is returned when an account has a user without a password, or the reverse.
	ErrAccount = errors.New("bad account")
	// ErrTLS is returned when TLS files are missing, unreadable or no PEM, or when TLS meets an endpoint of scheme http.
	ErrTLS = errors.New("bad TLS")
	// ErrOptions is returned when an option is or got nil, when two options exclude each other, and by a Publisher that
	// NewPublisher did not make.
	ErrOptions = errors.New("bad options")
	// ErrUnknownField is returned when a configuration has a field that Config has not: usually a typo, which would
	// otherwise be a setting that nobody reads.
	ErrUnknownField = errors.New("unknown field")
)

// A WithdrawError is returned when a key could not be withdrawn within the bound of the call. It is not renewed any more,
// and the withdrawal is tried again in the background: after a Pause for as long as it lasts, after a Stop for one TTL, and
// after a KeepAlive that failed until the key is gone on its own, whatever is called meanwhile.
type WithdrawError struct {
	// Key is the full key.
	Key string
	// Until is when the key is gone on its own, unless etcd is restarted before: then its lease runs from anew. It is
	// zero where no lease was known yet.
	Until time.Time
	// Err is why.
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
