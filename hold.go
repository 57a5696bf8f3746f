package discov

import (
	"context"
	"errors"
	"time"

	"github.com/discov-go/discov/internal/etcd"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// hold keeps watch over the key and its lease, until ctx is done or there is a doubt, which it returns. A watch outlives
// the doubt whether the value is the latest. Of any other it tells no more, and is replaced by the next hold: until then it
// shows whether etcd goes on.
func (r *registration) hold(ctx context.Context) error {
	r.settled = false
	r.watchKey()
	if !r.leases.isClean() { // now that the key is on another
		defer r.leases.sweepBeside(ctx)()
	}
	doubt := r.untilDoubt(ctx)
	r.spent = !errors.Is(doubt, errValueUpdated)
	return doubt
}

// rests reports whether there is nothing to do but to hold the key.
func (r *registration) rests() bool { return r.settled && !r.conflict && r.leases.isClean() }

// untilDoubt waits for a doubt, and returns it. The bell may have been heard by others: so it looks first.
func (r *registration) untilDoubt(ctx context.Context) error {
	free := r.untilFree()
	for {
		if doubt := r.look(); doubt != nil {
			return doubt
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-free:
			return errKeyGone
		case <-r.bell:
		}
	}
}

// look returns a doubt that there is.
func (r *registration) look() error {
	if doubt := r.hear(); doubt != nil {
		return doubt
	}
	if doubt := r.leaseDoubt(); doubt != nil {
		return doubt
	}
	if r.wanted.isNew() {
		r.fresh = r.isRight() // by the watch
		return errValueUpdated
	}
	return nil
}

// untilFree returns a channel on which it comes when a key that is free, but was another instance's, may be taken back; nil
// where there is none.
func (r *registration) untilFree() <-chan time.Time {
	if !r.conflict || r.isAnothers() {
		return nil
	}
	return time.After(r.fights.untilNext(r.seen.Exists()))
}

// hear takes what the watch has to tell: nothing of interest, or a doubt.
func (r *registration) hear() (doubt error) {
	last, news, err := r.watch.Take()
	if news && last.Rev > r.rev { // not from before what was read or written last
		r.seen, r.rev, r.told = last.Now, last.Rev, !last.Read
		r.contested = r.contested || r.isOfAnother(last.Held)
		if doubt := r.keyDoubt(); doubt != nil {
			r.fresh = true
			return doubt
		}
	}
	switch {
	case err == nil:
		return nil
	case etcd.IsDenied(err):
		return r.failed("read", err)
	default:
		return r.failed("watch", err)
	}
}

// keyDoubt returns the doubt in what was seen: none where the key is right, or is another instance's.
func (r *registration) keyDoubt() error {
	switch {
	case r.conflict && r.isAnothers(), !r.conflict && r.isRight():
		return nil
	case !r.seen.Exists():
		return errKeyGone
	default:
		return errKeyChanged
	}
}

// leaseDoubt returns what is wrong with the lease, nil where it is well after all.
func (r *registration) leaseDoubt() error {
	err := r.leases.held.Take()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		r.leases.lose()
		fallthrough
	default:
		return r.failed("renew the lease of", err)
	}
}
