package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var (
	// ErrWentBack is returned where etcd is at an older revision than before: it was wiped or restored.
	ErrWentBack = errors.New("etcd's revision went back")
	// ErrStreamEnded is returned to a request whose stream ended for a reason that is not its own.
	ErrStreamEnded = errors.New("the stream ended")
	// ErrSilent is returned to a request that waits for an etcd that answers nothing.
	ErrSilent = errors.New("etcd is silent")
	// ErrClientClosed is returned where the caller has closed the client that was given with WithClient.
	ErrClientClosed = errors.New("the client given with WithClient was closed")
	// ErrOutdated is returned for a Write that was not sent because there is a newer value. It is a status of gRPC's, so that
	// it comes through gRPC as it is.
	ErrOutdated error = outdatedError{}
)

type outdatedError struct{}

func (outdatedError) Error() string { return "the value was updated before it was sent" }

// GRPCStatus lets gRPC pass the error on.
func (e outdatedError) GRPCStatus() *status.Status { return status.New(codes.Unavailable, e.Error()) }

// An UnsentError is returned where there was no connection for as long as one was waited for, so that nothing was sent to
// trouble etcd with.
type UnsentError struct{ Err error }

// Error implements error.
func (e *UnsentError) Error() string { return e.Err.Error() }

// Unwrap returns why there was no connection.
func (e *UnsentError) Unwrap() error { return e.Err }

// IsUnsent reports whether nothing was sent for want of a connection.
func IsUnsent(err error) bool {
	var unsent *UnsentError
	return errors.As(err, &unsent)
}

// callError is an error of gRPC's in plain words, with what callers test for below it.
type callError struct {
	message string
	cause   error
}

func (e *callError) Error() string { return e.message }
func (e *callError) Unwrap() error { return e.cause }

// Plain makes an error of a call readable: etcd's own errors as the client's, and of gRPC's its words, which name the
// cause (a refused connection, a failed TLS handshake), where the client would tell of a deadline only.
func Plain(err error) error {
	if err == nil {
		return nil
	}
	if e := rpctypes.Error(err); IsEtcdError(e) {
		return e
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	message := strings.TrimPrefix(s.Message(), "latest balancer error: ")
	switch s.Code() {
	case codes.DeadlineExceeded:
		return Because(context.DeadlineExceeded, message)
	case codes.Canceled:
		return Because(context.Canceled, message)
	default:
		return &callError{fmt.Sprintf("%s: %s", s.Code(), message), err}
	}
}

// Because returns err, with gRPC's message where that tells more than err.
func Because(err error, message string) error {
	message = strings.TrimPrefix(strings.TrimPrefix(message, err.Error()), " ")
	if message == "" {
		return err
	}
	return &callError{err.Error() + ": " + message, err}
}

// IsEtcdError reports whether etcd itself answered with err.
func IsEtcdError(err error) bool {
	var e rpctypes.EtcdError
	return errors.As(err, &e)
}

// IsDenied reports whether etcd refused for want of a permission.
func IsDenied(err error) bool {
	return errors.Is(err, rpctypes.ErrPermissionDenied)
}

// IsTokenError reports whether a new token could mend err. ErrAuthOldRevision means that users or roles have changed
// since the token was made.
func IsTokenError(err error) bool {
	return errors.Is(err, rpctypes.ErrInvalidAuthToken) ||
		errors.Is(err, rpctypes.ErrUserEmpty) ||
		errors.Is(err, rpctypes.ErrAuthOldRevision)
}

// IsFinal reports whether trying again cannot help until somebody has changed etcd's users, permissions or settings.
func IsFinal(err error) bool {
	for _, final := range []error{
		rpctypes.ErrPermissionDenied,
		rpctypes.ErrAuthFailed,
		rpctypes.ErrUserEmpty,
		rpctypes.ErrLeaseTTLTooLarge,
		rpctypes.ErrNoSpace,
		rpctypes.ErrCorrupt,
	} {
		if errors.Is(err, final) {
			return true
		}
	}
	return IsTooLarge(err)
}

// IsRefusal reports whether etcd has answered that it did not, and will not, do what was asked.
func IsRefusal(err error) bool {
	return IsFinal(err) || isNoLeader(err) || errors.Is(err, rpctypes.ErrTooManyRequests)
}

// IsOfOneMember reports whether another member may do what this one could not.
func IsOfOneMember(err error) bool {
	return status.Code(err) == codes.Unimplemented || isNoLeader(err)
}

func isNoLeader(err error) bool {
	return errors.Is(rpctypes.Error(err), rpctypes.ErrNoLeader)
}

// IsTooLarge reports whether a value is too large for etcd, or for gRPC before it. Of gRPC's ResourceExhausted only its
// own limit of a message counts, which it tells in words alone, the client's as the server's: it has the same code for a
// reset by flow control and for ENHANCE_YOUR_CALM, and proxies have it for a limit of their rate.
func IsTooLarge(err error) bool {
	return errors.Is(err, rpctypes.ErrRequestTooLarge) ||
		status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "message larger than max")
}
