package discov

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// etcd is all that a registration asks of etcd. Every call ends with its ctx, but for grant, and may be repeated: none does
// harm when it was applied although it failed. A session is the real one; tests bring a fake.
type etcd interface {
	// ready waits until there is a connection that is not silent, so that what is sent next is not kept waiting. Its own
	// bound ends it, and every other call that finds no connection, with an unsentError.
	ready(ctx context.Context) error
	// reconnected waits until the connection is another one than now. It says no when ctx is done.
	reconnected(ctx context.Context) bool
	// pause waits for d, or until the connection is replaced. It says no when ctx is done.
	pause(ctx context.Context, d time.Duration) bool
	// grant creates a lease, and returns its ID and the TTL that etcd granted, in seconds. It may outlast its ctx, by a
	// bound. Its strays are those that etcd may grant as well, even after they were revoked, so that nothing must ever be
	// put on them: what was asked for without an answer.
	grant(ctx context.Context, ttl int64) (id clientv3.LeaseID, granted int64, strays []clientv3.LeaseID, err error)
	// renew returns the TTL in seconds that the lease has again and etcd's revision, or rpctypes.ErrLeaseNotFound.
	// alone keeps the request off the streams that all leases share. An answer may take as long as within, and as any
	// other may.
	renew(ctx context.Context, id clientv3.LeaseID, alone bool, within time.Duration) (ttl, rev int64, err error)
	// revoke ends the lease; one that does not exist is no error.
	revoke(ctx context.Context, id clientv3.LeaseID) error
	// get reads the key, linearizably, and etcd's revision.
	get(ctx context.Context, key string) (entry, int64, error)
	// put writes a key, whatever is there.
	put(ctx context.Context, what write) (rev int64, err error)
	// putOver writes a key if nobody has written it since was was read, and otherwise returns what is there.
	putOver(ctx context.Context, was entry, what write) (put bool, now entry, rev int64, err error)
	// watch tells of the key from revision rev on. It never blocks.
	watch(key string, rev int64) *watcher
}

// entry is a key as etcd holds it; the zero entry is a key that is not there.
type entry struct {
	value string
	lease clientv3.LeaseID
	// rev is the revision of the last write, zero where the key is not there.
	rev int64
}

func (e entry) exists() bool { return e.rev != 0 }

// write is what is to be written to a key.
type write struct {
	key, value string
	lease      clientv3.LeaseID
	// outdated says that there is a newer value meanwhile. A write that has waited for a connection is not sent then, but
	// fails with errOutdated.
	outdated func() bool
}

// errOutdated is a status of gRPC's, so that it comes through gRPC as it is.
var errOutdated error = outdatedError{}

type outdatedError struct{}

func (outdatedError) Error() string { return "the value was updated before it was sent" }

func (e outdatedError) GRPCStatus() *status.Status { return status.New(codes.Unavailable, e.Error()) }

// unsentError says that there was no connection for as long as one was waited for, and so nothing to trouble etcd with.
type unsentError struct{ error }

func (e *unsentError) Unwrap() error { return e.error }

func isUnsent(err error) bool {
	var unsent *unsentError
	return errors.As(err, &unsent)
}

// callError is an error of gRPC's in plain words, with what callers test for below it.
type callError struct {
	message string
	cause   error
}

func (e *callError) Error() string { return e.message }
func (e *callError) Unwrap() error { return e.cause }

// plain makes an error of a call readable: etcd's own errors as the client's, and of gRPC's its words, which name the
// cause (a refused connection, a failed TLS handshake), where the client would tell of a deadline only.
func plain(err error) error {
	if err == nil {
		return nil
	}
	if e := rpctypes.Error(err); isEtcdError(e) {
		return e
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	message := strings.TrimPrefix(s.Message(), "latest balancer error: ")
	switch s.Code() {
	case codes.DeadlineExceeded:
		return &callError{because(context.DeadlineExceeded, message), context.DeadlineExceeded}
	case codes.Canceled:
		return &callError{because(context.Canceled, message), context.Canceled}
	default:
		return &callError{fmt.Sprintf("%s: %s", s.Code(), message), err}
	}
}

// because says err, and gRPC's message where that is more than err.
func because(err error, message string) string {
	message = strings.TrimPrefix(strings.TrimPrefix(message, err.Error()), " ")
	if message == "" {
		return err.Error()
	}
	return err.Error() + ": " + message
}

// isEtcdError says whether etcd itself answered with err.
func isEtcdError(err error) bool {
	var e rpctypes.EtcdError
	return errors.As(err, &e)
}

// isDenied says whether etcd refused for want of a permission.
func isDenied(err error) bool {
	return errors.Is(err, rpctypes.ErrPermissionDenied)
}

// isTokenError says whether a new token could mend err. ErrAuthOldRevision means that users or roles have changed since
// the token was made.
func isTokenError(err error) bool {
	return errors.Is(err, rpctypes.ErrInvalidAuthToken) ||
		errors.Is(err, rpctypes.ErrUserEmpty) ||
		errors.Is(err, rpctypes.ErrAuthOldRevision)
}

// isFinal says whether trying again cannot help until somebody has changed etcd's users, permissions or settings.
func isFinal(err error) bool {
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
	return isTooLarge(err)
}

// isRefusal says whether etcd has answered that it did not, and will not, do what was asked.
func isRefusal(err error) bool {
	return isFinal(err) || isNoLeader(err) || errors.Is(err, rpctypes.ErrTooManyRequests)
}

// isOfOneMember says whether another member may do what this one could not.
func isOfOneMember(err error) bool {
	return status.Code(err) == codes.Unimplemented || isNoLeader(err)
}

// isNoLeader says whether a member refused because it knows no leader.
func isNoLeader(err error) bool {
	return errors.Is(rpctypes.Error(err), rpctypes.ErrNoLeader)
}

// isTooLarge says whether a value is too large for etcd, or for gRPC before it.
func isTooLarge(err error) bool {
	return errors.Is(err, rpctypes.ErrRequestTooLarge) || status.Code(err) == codes.ResourceExhausted
}
