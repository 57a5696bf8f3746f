package discov

import (
	"context"
	"time"

	"github.com/discov-go/discov/internal/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// store is all that a registration asks of etcd. Every call ends with its ctx, but for Grant, and may be repeated: none does
// harm when it was applied although it failed. A session is the real one; tests bring a fake.
type store interface {
	// Ready waits until there is a connection that is not silent, so that what is sent next is not kept waiting. Its own
	// bound ends it, and every other call that finds no connection, with an UnsentError.
	Ready(ctx context.Context) error
	// Reconnected waits until the connection is another one than now. It returns false if ctx is done first.
	Reconnected(ctx context.Context) bool
	// Pause waits for d, or until the connection is replaced. It returns false if ctx is done first.
	Pause(ctx context.Context, d time.Duration) bool
	// Grant creates a lease, and returns its ID and the TTL that etcd granted, in seconds. It may outlast its ctx, by a
	// bound. Its strays are those that etcd may grant as well, even after they were revoked, so that nothing must ever be
	// put on them: what was asked for without an answer.
	Grant(ctx context.Context, ttl int64) (id clientv3.LeaseID, granted int64, strays []clientv3.LeaseID, err error)
	// Renew returns the TTL in seconds that the lease has again and etcd's revision, or rpctypes.ErrLeaseNotFound.
	// alone keeps the request off the streams that all leases share. An answer may take as long as within, and as any
	// other may.
	Renew(ctx context.Context, id clientv3.LeaseID, alone bool, within time.Duration) (ttl, rev int64, err error)
	// Revoke ends the lease; one that does not exist is no error.
	Revoke(ctx context.Context, id clientv3.LeaseID) error
	// Get reads the key, linearizably, and etcd's revision.
	Get(ctx context.Context, key string) (etcd.Entry, int64, error)
	// Put writes a key, whatever is there.
	Put(ctx context.Context, what etcd.Write) (rev int64, err error)
	// PutOver writes a key if nobody has written it since was was read, and otherwise returns what is there.
	PutOver(ctx context.Context, was etcd.Entry, what etcd.Write) (put bool, now etcd.Entry, rev int64, err error)
	// Watch tells of the key from revision rev on. It never blocks.
	Watch(key string, rev int64) *etcd.Watcher
}
