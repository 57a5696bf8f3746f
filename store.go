package discov

import (
	"context"
	"time"

	"github.com/discov-go/discov/internal/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// store is all that a registration asks of etcd. Every call ends with its ctx, but for Grant, and may be repeated: none
// does harm when it was applied although it failed. A conn.Caller is the real one; tests bring a fake.
type store interface {
	// Ready waits until there is a connection that is not silent, so that what is sent next is not kept waiting. Its own
	// bound ends it, and every other call that finds no connection, with an UnsentError.
	Ready(ctx context.Context) error
	// Reconnected waits until the connection is another one than now. It returns false if ctx is done first.
	Reconnected(ctx context.Context) bool
	// Pause waits for d, or until the connection is replaced. It returns false if ctx is done first.
	Pause(ctx context.Context, d time.Duration) bool

	// Grant creates a lease with an ID that next gives, another one for each try. It may outlast its ctx, by a bound. Its
	// strays are those that etcd has as well, or may grant, even after they were revoked, so that nothing must ever be put on
	// them: what was asked for without an answer, and what was there already.
	Grant(ctx context.Context, ttl time.Duration, next func() clientv3.LeaseID) (lease *etcd.Keepalive, strays []clientv3.LeaseID, err error)
	// KeepAlive renews the lease in the background from now on, and tells it when that fails.
	KeepAlive(lease *etcd.Keepalive)
	// LetGo ends that: no renewal is sent any more.
	LetGo(lease *etcd.Keepalive)
	// Renew renews the lease now. It returns rpctypes.ErrLeaseNotFound where it has ended.
	Renew(ctx context.Context, lease *etcd.Keepalive) error
	// Revoke ends a lease; one that does not exist is no error.
	Revoke(ctx context.Context, id clientv3.LeaseID) error

	// Get reads the key, linearizably, and etcd's revision.
	Get(ctx context.Context, key string) (now etcd.Entry, rev int64, err error)
	// Leases returns those of all keys that begin so, or of the one key where that is whole.
	Leases(ctx context.Context, key string, whole bool) ([]clientv3.LeaseID, error)
	// Put writes a key, whatever is there.
	Put(ctx context.Context, what etcd.Write) (rev int64, err error)
	// PutOver writes a key if nobody has written it since was was read, and otherwise returns what is there.
	PutOver(ctx context.Context, was etcd.Entry, what etcd.Write) (put bool, now etcd.Entry, rev int64, err error)
	// Watch tells of the key, which was so at revision rev, and rings the bell. It reads the key now and then, in case that
	// the watch missed something. It never blocks.
	Watch(key string, now etcd.Entry, rev int64, bell etcd.Bell) *etcd.Watcher
}
