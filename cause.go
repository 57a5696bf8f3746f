package discov

import (
	"context"
	"errors"
	"fmt"

	"github.com/discov-go/discov/internal/etcd"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// Why hold ends: each is a doubt that reconcile settles.
var (
	errKeyChanged   = errors.New("the key was changed")
	errKeyGone      = errors.New("the key was deleted")
	errValueUpdated = errors.New("the value was updated")
)

// errStillChanging ends a reconcile under which the key, its value or its lease changed each time.
var errStillChanging = errors.New("it keeps being changed")

// errUnhealthy is why the key is withheld while the health check fails.
var errUnhealthy = errors.New("the health check failed")

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

// isLoss reports whether a doubt means that the key is not there, or not right. The rest may turn out well.
func isLoss(doubt error) bool {
	return errors.Is(doubt, errKeyGone) || errors.Is(doubt, errKeyChanged) || errors.Is(doubt, rpctypes.ErrLeaseNotFound)
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
func (s *signs) causeOfLoss(leaseEnded bool, doubt, err error) Cause {
	switch {
	case s.wentBack:
		return CauseStoreWentBack
	case leaseEnded:
		return CauseLeaseEnded
	case s.key != 0:
		return s.key
	case isLoss(doubt):
		return kindOf(doubt)
	default:
		return kindOf(err)
	}
}
