package discov

import (
	"context"
	"errors"
	"time"

	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/etcd"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// reconcile makes etcd hold the key with the latest value under a lease of ours, and changes nothing that is right. With
// takeover it puts over whatever is there; without, it leaves the key to another instance that holds it, and notes that in
// conflict.
func (r *registration) reconcile(ctx context.Context, takeover bool) error {
	for range reconcileRounds {
		kept, err := r.leases.secure(ctx)
		if key := r.fullKey(); key != r.key {
			r.unwatch()
			r.key = key
		}
		if err != nil {
			if r.leases.held != nil {
				return r.failed("renew the lease of", err)
			}
			return r.failed("get a lease for", err)
		}
		switch err := r.secureKey(ctx, takeover, kept); {
		case err == nil:
			r.settled = true
			return nil
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			r.leases.lose()
		case errors.Is(err, etcd.ErrOutdated):
		case etcd.IsTooLarge(err) && r.refuse(err):
		default:
			return err
		}
	}
	return r.failed("register", errStillChanging)
}

// refuse notes that etcd does not take the value, and settles for the one that it took last, if there is one.
func (r *registration) refuse(err error) bool {
	if r.accepted == "" || r.value == r.accepted {
		return false
	}
	r.refused, r.refusal = r.value, err
	return true
}

// secureKey makes the key right on the lease held.
func (r *registration) secureKey(ctx context.Context, takeover, kept bool) error {
	fresh := r.fresh
	r.fresh = false
	if takeover {
		r.contested = false // to take it is somebody's decision
		return r.put(ctx)
	}
	if !kept {
		r.seen, r.told = etcd.Entry{}, false // most likely gone with its lease; putOver tells if not
	} else if !fresh {
		if err := r.read(ctx); err != nil {
			return r.putUnread(ctx, err)
		}
	}
	for range reconcileRounds {
		if done, err := r.mend(ctx); done || err != nil {
			return err
		}
	}
	return r.failed("put", errStillChanging)
}

// read takes what etcd holds.
func (r *registration) read(ctx context.Context) error {
	now, rev, err := r.store.Get(ctx, r.key)
	if err != nil {
		return r.failed("read", err)
	}
	r.seen = now
	r.noteRev(rev)
	return nil
}

// putUnread puts the key for an account that may write it but not read it: the key cannot be compared then, so each
// doubt costs a write. A read that failed for another reason stays an error.
func (r *registration) putUnread(ctx context.Context, readErr error) error {
	if !etcd.IsDenied(readErr) {
		return readErr
	}
	return r.put(ctx)
}

// put writes the key over whatever is there.
func (r *registration) put(ctx context.Context) error {
	if err := r.takeLatest(ctx); err != nil {
		return r.failed("put", err)
	}
	rev, err := r.store.Put(ctx, r.write())
	if err != nil {
		return r.failed("put", err)
	}
	r.wrote(rev)
	r.puts++
	return nil
}

// takeLatest takes the value that is wanted once it can be sent: the one from before an outage is not to be seen after it.
func (r *registration) takeLatest(ctx context.Context) error {
	if err := r.store.Ready(ctx); err != nil {
		return err
	}
	r.value = r.wanted.latest()
	if r.refusal != nil && r.value == r.refused {
		r.value = r.accepted
	} else {
		r.refusal = nil
	}
	return nil
}

// write returns what makes the key right.
func (r *registration) write() etcd.Write {
	return etcd.Write{Key: r.key, Value: r.value, Lease: r.leases.held.ID, Outdated: r.wanted.outdated}
}

func (r *registration) wrote(rev int64) {
	r.seen = etcd.Entry{Value: r.value, Lease: r.leases.held.ID, Rev: rev}
	r.noteRev(rev)
	r.noteHeld()
}

// noteHeld notes that etcd holds what is wanted.
func (r *registration) noteHeld() {
	if r.contested {
		r.fights.note()
	}
	r.conflict, r.contested = false, false
	r.accepted = r.value
}

// mend compares what was seen with what is wanted and writes at most once. It is done when the key is right, or is to be
// left to another instance.
func (r *registration) mend(ctx context.Context) (done bool, err error) {
	if err := r.takeLatest(ctx); err != nil {
		return true, r.failed("put", err)
	}
	switch {
	case r.isRight():
		r.noteHeld() // the answer to an earlier write may have been lost
		return true, nil
	case r.isToBeLeft():
		r.conflict, r.contested = true, true
		return true, nil
	}
	if id := r.seen.Lease; r.leases.family.has(id) && !r.leases.isHeld(id) {
		r.leases.disown(id)
	}
	isUpdate := r.holds(r.accepted)
	if !isUpdate {
		r.signs.note(r.seen)
	}
	put, now, rev, err := r.store.PutOver(ctx, r.seen, r.write())
	if err != nil {
		if etcd.IsDenied(err) {
			return true, r.putUnread(ctx, r.failed("put", err))
		}
		return true, r.failed("put", err)
	}
	if !put {
		r.seen = now
		r.noteRev(rev)
		return false, nil
	}
	r.wrote(rev)
	if !isUpdate {
		r.puts++
	}
	return true, nil
}

// isToBeLeft reports whether the key is another instance's, or was and must not be taken back yet.
func (r *registration) isToBeLeft() bool {
	return r.isAnothers() || r.contested && r.fights.untilNext(r.seen.Exists()) > 0
}

// rest pauses after a try that failed, but not where nothing was sent: the next one waits for the connection. It returns
// false if ctx is done first.
func (r *registration) rest(ctx context.Context, retry *backoff.Backoff, err error) bool {
	if etcd.IsUnsent(err) {
		return ctx.Err() == nil
	}
	return r.store.Pause(ctx, retry.Take())
}

// withdraw revokes all leases of ours, and the key with them. Deleting the key instead would let a late put bring it
// back, and would take away a successor's.
func (r *registration) withdraw(ctx context.Context) error {
	r.settled = false
	r.unwatch()
	r.leases.discard()
	if err := r.leases.sweep(ctx); err != nil {
		return r.failed("revoke the lease of", err)
	}
	r.seen, r.told, r.fresh, r.conflict, r.contested = etcd.Entry{}, false, false, false, false
	r.signs, r.leases.ended = signs{}, false
	return nil
}

// guard keeps the key withdrawn until ctx is done: an etcd that was restored has a lease of ours again, and the key with it.
// As long as the connection lasts, so does etcd. Reconnects in a row are looked at with pauses.
func (r *registration) guard(ctx context.Context) {
	var looked time.Time
	for pace := backoff.New(); r.store.Reconnected(ctx); looked = time.Now() {
		if r.leases.family.used == 0 {
			continue // nothing of ours was ever in etcd
		}
		if time.Since(looked) > calm {
			pace.Reset()
		} else if !pace.Wait(ctx) {
			return
		}
		r.leases.suspicions++
		for retry := backoff.New(); ; {
			if err := r.withdraw(ctx); err == nil || !r.rest(ctx, retry, err) {
				break
			}
		}
	}
}
