package etcd

import (
	"errors"
	"strings"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A Watcher tells what happened last to one key. A watch is a hint, never the truth: after a Watcher has ended, its user
// reads the key and watches again from what was read. It is safe for concurrent use.
type Watcher struct {
	// Bell is rung when there is news.
	Bell Bell
	// Source is what tells it.
	Source interface{ Cancel() }

	mu   sync.Mutex
	last Change
	news bool
	err  error
}

// A Change is the last one of a key.
type Change struct {
	Now  Entry
	Rev  int64            // of the change, also where the key is not there any more
	Held clientv3.LeaseID // the lease of the last put
	// Read means that no event told it: the key was read.
	Read bool
}

// Cancel ends the watch; its user listens no more.
func (w *Watcher) Cancel() { w.Source.Cancel() }

// Take returns the last change, if there was one since the last take, and why the watcher has ended, if it has.
func (w *Watcher) Take() (last Change, news bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	last, news, err = w.last, w.news, w.err
	w.news = false
	return last, news, err
}

// HasEnded reports whether the watcher has ended by itself.
func (w *Watcher) HasEnded() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err != nil
}

// Tell notes a change of the key that an event has told, made at revision rev.
func (w *Watcher) Tell(now Entry, rev int64) { w.note(now, rev, false) }

// Found notes that the key was read at revision rev, and has changed.
func (w *Watcher) Found(now Entry, rev int64) { w.note(now, rev, true) }

func (w *Watcher) note(now Entry, rev int64, read bool) {
	w.mu.Lock()
	w.last.Now, w.last.Rev, w.last.Read, w.news = now, rev, read, true
	if now.Exists() {
		w.last.Held = now.Lease
	}
	w.mu.Unlock()
	w.Bell.Ring()
}

// End notes why the watch has ended. The first reason counts.
func (w *Watcher) End(err error) {
	w.mu.Lock()
	if w.err == nil {
		w.err = err
	}
	w.mu.Unlock()
	w.Bell.Ring()
}

// EntryAfter returns the key as an event leaves it.
func EntryAfter(event *mvccpb.Event) Entry {
	if event.GetType() == mvccpb.Event_DELETE {
		return Entry{}
	}
	return EntryOf(event.GetKv())
}

// EntryOf returns the key as etcd tells of it.
func EntryOf(kv *mvccpb.KeyValue) Entry {
	return Entry{Value: string(kv.GetValue()), Lease: clientv3.LeaseID(kv.GetLease()), Rev: kv.GetModRevision()}
}

// CancelReason returns why etcd cancelled a watch. It comes as text, with gRPC's prefix or without.
func CancelReason(response *pb.WatchResponse) error {
	if response.GetCompactRevision() != 0 {
		return rpctypes.ErrCompacted
	}
	reason := response.GetCancelReason()
	if _, text, ok := strings.Cut(reason, "desc = "); ok {
		reason = text
	}
	if reason == "" {
		reason = "the watch was cancelled"
	}
	return rpctypes.Error(errors.New(reason))
}
