package conn

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/discov-go/discov/internal/etcd"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// Grant creates a lease with an ID that next gives, another one for each try, for the TTL or longer, as etcd has it.
//
// It may outlast its ctx, by a bound. The strays are leases that etcd has as well, or may grant, even after they were
// revoked, so that nothing must ever be put on them: what was asked for without an answer, and what was there already.
func (c *requester) Grant(ctx context.Context, ttl time.Duration, next func() clientv3.LeaseID) (lease *etcd.Keepalive, strays []clientv3.LeaseID, err error) {
	tries := grantTries{next: next}
	lease, err = ask(ctx, c, request[*etcd.Keepalive]{
		send:     func(ctx context.Context, l *link) (*etcd.Keepalive, error) { return l.grant(ctx, ttl, &tries) },
		outlasts: max(c.bounds.Call, outlastLeast), // because: etcd might grant a lease after it was revoked
	})
	if err != nil {
		return nil, tries.end(clientv3.NoLease), err
	}
	return lease, tries.end(lease.ID), nil
}

// grant asks for a lease, of another ID where etcd has one of that ID already, from before it was restored, or because the
// call was made twice (because: while an etcd was set up anew, a call with its former token was granted a lease, but was
// ended for the token, made with another, and refused; the lease was there for its TTL).
func (l *link) grant(ctx context.Context, ttl time.Duration, tries *grantTries) (*etcd.Keepalive, error) {
	for {
		id, err := tries.begin()
		if err != nil {
			return nil, err
		}
		asked := time.Now()
		request := &pb.LeaseGrantRequest{ID: int64(id), TTL: int64(ttl / time.Second)}
		response, err := l.leases.LeaseGrant(ctx, request, grpc.WaitForReady(true))
		switch e := etcd.Plain(err); {
		case err == nil:
			return etcd.NewKeepalive(id, time.Duration(response.GetTTL())*time.Second, asked), nil
		case errors.Is(e, rpctypes.ErrLeaseExist):
			continue
		case etcd.IsRefusal(e) && !errors.Is(e, rpctypes.ErrNoSpace): // that its disk is full, etcd may find out once it has granted
			tries.drop(id)
		}
		return nil, err
	}
}

// grantTries are the lease IDs that a grant has asked for.
type grantTries struct {
	next func() clientv3.LeaseID

	mu    sync.Mutex
	ids   []clientv3.LeaseID
	ended bool
}

// begin returns an ID to ask for, unless the grant has returned.
func (t *grantTries) begin() (clientv3.LeaseID, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return clientv3.NoLease, context.Canceled
	}
	id := t.next()
	t.ids = append(t.ids, id)
	return id, nil
}

// drop forgets an ID of which etcd has told that it is not granted, or was to the one who asked.
func (t *grantTries) drop(id clientv3.LeaseID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ids = slices.DeleteFunc(t.ids, func(one clientv3.LeaseID) bool { return one == id })
}

// end returns the IDs that are left beside the one that was granted.
func (t *grantTries) end(granted clientv3.LeaseID) []clientv3.LeaseID {
	t.drop(granted)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	return slices.Clone(t.ids)
}

// Renew renews the lease now. It returns rpctypes.ErrLeaseNotFound where the lease has ended.
func (c *requester) Renew(ctx context.Context, lease *etcd.Keepalive) error {
	_, err := ask(ctx, c, request[struct{}]{send: func(ctx context.Context, l *link) (struct{}, error) {
		return struct{}{}, l.renewals.Renew(ctx, lease)
	}})
	return err
}

// Revoke ends the lease; one that does not exist is no error.
func (c *requester) Revoke(ctx context.Context, id clientv3.LeaseID) error {
	_, err := ask(ctx, c, request[*pb.LeaseRevokeResponse]{send: func(ctx context.Context, l *link) (*pb.LeaseRevokeResponse, error) {
		return l.leases.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: int64(id)}, grpc.WaitForReady(true))
	}})
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return nil
	}
	return err
}

// askRevision asks for etcd's revision, which is noted as that of any answer.
func (c *requester) askRevision(ctx context.Context) error {
	_, err := truly(ctx, c, func(ctx context.Context, l *link) (*pb.TxnResponse, error) {
		return l.kv.Txn(ctx, nothing(), grpc.WaitForReady(true))
	})
	return err
}

// Get reads the key, linearizably, and etcd's revision.
func (c *requester) Get(ctx context.Context, key string) (now etcd.Entry, rev int64, err error) {
	response, err := truly(ctx, c, func(ctx context.Context, l *link) (*pb.RangeResponse, error) {
		return l.kv.Range(ctx, rangeOf(key), grpc.WaitForReady(true))
	})
	return firstOf(response), response.GetHeader().GetRevision(), err
}

// Leases returns the leases of all keys that begin so, or of the one key where that is whole.
func (c *requester) Leases(ctx context.Context, key string, whole bool) ([]clientv3.LeaseID, error) {
	request := rangeOf(key) // with values, or etcd 3.7 leaves the leases out
	if !whole {
		request.RangeEnd = []byte(clientv3.GetPrefixRangeEnd(key))
	}
	response, err := truly(ctx, c, func(ctx context.Context, l *link) (*pb.RangeResponse, error) {
		return l.kv.Range(ctx, request, grpc.WaitForReady(true))
	})
	var ids []clientv3.LeaseID
	for _, kv := range response.GetKvs() {
		if kv.GetLease() != 0 {
			ids = append(ids, clientv3.LeaseID(kv.GetLease()))
		}
	}
	return ids, err
}

// Put writes a key, whatever is there.
func (c *requester) Put(ctx context.Context, what etcd.Write) (rev int64, err error) {
	request, latest := putOf(what), whileLatest(what)
	response, err := truly(ctx, c, func(ctx context.Context, l *link) (*pb.PutResponse, error) {
		return l.kv.Put(ctx, request, grpc.WaitForReady(true), latest)
	})
	return response.GetHeader().GetRevision(), err
}

// PutOver writes a key if nobody has written it since was was read, and otherwise returns what is there.
func (c *requester) PutOver(ctx context.Context, was etcd.Entry, what etcd.Write) (put bool, now etcd.Entry, rev int64, err error) {
	txn := &pb.TxnRequest{
		Compare: []*pb.Compare{{
			Key:         []byte(what.Key),
			Target:      pb.Compare_MOD,
			Result:      pb.Compare_EQUAL,
			TargetUnion: &pb.Compare_ModRevision{ModRevision: was.Rev},
		}},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: putOf(what)}}},
		Failure: []*pb.RequestOp{readOf(what.Key)},
	}
	response, err := truly(ctx, c, func(ctx context.Context, l *link) (*pb.TxnResponse, error) {
		return l.kv.Txn(ctx, txn, grpc.WaitForReady(true), whileLatest(what))
	})
	if err == nil && !response.GetSucceeded() {
		now = firstOf(response.GetResponses()[0].GetResponseRange())
	}
	return response.GetSucceeded(), now, response.GetHeader().GetRevision(), err
}

// hasHeader is a response that tells etcd's revision.
type hasHeader interface{ GetHeader() *pb.ResponseHeader }

// truly makes a request whose answer tells etcd's revision for sure, not that of a member that lags behind.
func truly[T hasHeader](ctx context.Context, c *requester, send func(context.Context, *link) (T, error)) (answer T, err error) {
	before := c.links.history.latest()
	answer, err = ask(ctx, c, request[T]{send: send})
	if err == nil {
		c.links.history.note(before, answer.GetHeader().GetRevision())
	}
	return answer, err
}

// whileLatest keeps a write from being sent once it is outdated. When the connection is lost, gRPC holds a request back for
// the next one, and asks for credentials just before it sends it.
func whileLatest(what etcd.Write) grpc.CallOption {
	return grpc.PerRPCCredentials(latestOnly(what))
}

type latestOnly etcd.Write

// GetRequestMetadata implements gRPC's PerRPCCredentials.
func (l latestOnly) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if l.Outdated() {
		return nil, etcd.ErrOutdated
	}
	return nil, nil
}

// RequireTransportSecurity implements gRPC's PerRPCCredentials.
func (latestOnly) RequireTransportSecurity() bool { return false }
