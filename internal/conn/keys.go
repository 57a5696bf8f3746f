package conn

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/etcd"
	"github.com/discov-go/discov/internal/stream"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
)

// keys are those that are watched over a connection. All of them are read now and then, many at once, in case that a watch
// missed something: a watch is a hint, the read is the truth.
type keys struct {
	links *links
	own   *requester

	mu       sync.Mutex
	all      map[*key]struct{}
	auditing bool // whether there is a goroutine
}

func newKeys(on *links, own *requester) *keys {
	return &keys{links: on, own: own, all: map[*key]struct{}{}}
}

// key is one that is watched, on whichever stream. It is the Listener of its watch, and the Source of its user's Watcher.
type key struct {
	of   *keys
	name string
	user etcd.Watcher

	mu      sync.Mutex
	written int64 // the revision of its last write, as far as it is known; zero where it is not there
	rev     int64 // when it was so
	blind   bool  // whether the account may not watch it
	another bool  // whether a member could not watch it, and the next one was asked
	ended   bool
	on      *stream.Watch // the last one, nil where there was none or it is cancelled
}

// Watch tells of the key, which was so at revision rev, until it ends, and rings the bell. It does not wait. An account that may read the key,
// but not watch it, hears of it now and then.
func (ks *keys) Watch(name string, now etcd.Entry, rev int64, bell etcd.Bell) *etcd.Watcher {
	k := &key{of: ks, name: name, user: etcd.Watcher{Bell: bell}, written: now.Rev, rev: rev}
	k.user.Source = k
	ks.add(k)
	k.watch()
	return &k.user
}

func (ks *keys) add(k *key) {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	ks.all[k] = struct{}{}
	if !ks.auditing {
		ks.auditing = true
		ks.links.run(ks.audit)
	}
}

func (ks *keys) remove(k *key) {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	delete(ks.all, k)
}

// watch asks for a watch on the link of now.
func (k *key) watch() {
	l := k.of.links.enter()
	defer l.calls.Done()
	if l.isClosedByCaller() {
		k.finish(etcd.ErrClientClosed)
		return
	}
	k.mu.Lock()
	rev := k.rev + 1
	k.mu.Unlock()
	on := l.watches.Watch(rev, k)
	k.mu.Lock()
	ended := k.ended
	k.on = on
	k.mu.Unlock()
	if ended {
		on.Cancel()
	}
}

// Cancel ends the watch for its user.
func (k *key) Cancel() {
	k.of.remove(k)
	k.mu.Lock()
	on := k.on
	k.ended, k.on = true, nil
	k.mu.Unlock()
	if on != nil {
		on.Cancel()
	}
}

// finish tells the user that the watch has ended by itself.
func (k *key) finish(err error) {
	k.of.remove(k)
	k.mu.Lock()
	k.ended = true
	k.mu.Unlock()
	k.user.End(err)
}

// Key implements stream.Listener.
func (k *key) Key() string { return k.name }

// Tell implements stream.Listener.
func (k *key) Tell(now etcd.Entry, rev int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if rev > k.rev {
		k.another = false
		k.written, k.rev = now.Rev, rev
		k.user.Tell(now, rev) // under the lock, so that watch and audit tell it in turn
	}
}

// End implements stream.Listener. A watch that the account may not have is asked for again once the key can be read.
func (k *key) End(err error) {
	k.mu.Lock()
	another := etcd.IsOfOneMember(err) && !k.another
	k.another = k.another || another
	k.blind = etcd.IsDenied(err)
	blind := k.blind
	k.mu.Unlock()
	switch {
	case another:
		k.of.links.run(k.watch)
	case !blind:
		k.finish(err)
	}
}

// found takes what an audit has read at revision rev.
func (k *key) found(now etcd.Entry, rev int64) {
	k.mu.Lock()
	blind := k.blind && !k.ended
	k.blind, k.another = false, false
	switch {
	case rev < k.rev:
	case now.Rev != k.written:
		k.written, k.rev = now.Rev, rev
		k.user.Found(now, rev)
	default:
		k.rev = rev
	}
	k.mu.Unlock()
	if blind {
		k.watch()
	}
}

// audit reads all keys now and then, as long as there are any.
func (ks *keys) audit() {
	for backoff.Pause(ks.links.ctx, backoff.Jitter(auditEvery)) {
		these := ks.toAudit()
		if len(these) == 0 {
			return
		}
		for batch := range slices.Chunk(these, auditBatch) {
			ks.read(batch)
		}
	}
}

// toAudit returns the keys of now. Where there are none, the audit is over.
func (ks *keys) toAudit() (these []*key) {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	for k := range ks.all {
		these = append(these, k)
	}
	ks.auditing = len(these) > 0
	return these
}

// read reads keys at once. Where one of several may not be read, or they are too many for etcd, each half is read by itself;
// the one that may not be is told so. What fails otherwise is left to the next audit: that etcd is ill shows elsewhere.
func (ks *keys) read(batch []*key) {
	txn := &pb.TxnRequest{}
	for _, k := range batch {
		txn.Success = append(txn.Success, readOf(k.name))
	}
	ctx, cancel := context.WithTimeout(ks.links.ctx, auditTimeout)
	defer cancel()
	response, err := truly(ctx, ks.own, func(ctx context.Context, l *link) (*pb.TxnResponse, error) {
		return l.kv.Txn(ctx, txn, grpc.WaitForReady(true))
	})
	switch {
	case err == nil:
		for i, k := range batch {
			k.found(firstOf(response.GetResponses()[i].GetResponseRange()), response.GetHeader().GetRevision())
		}
	case len(batch) > 1 && (etcd.IsDenied(err) || etcd.IsTooLarge(err) || errors.Is(err, rpctypes.ErrTooManyOps)):
		for half := range slices.Chunk(batch, (len(batch)+1)/2) {
			ks.read(half)
		}
	case etcd.IsDenied(err):
		batch[0].finish(err)
	}
}
