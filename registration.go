package discov

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/discov-go/discov/internal/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// registration is a key on a lease. Only the Publisher's goroutine touches it.
type registration struct {
	store  store
	leases leases

	wanted wanted
	bell   etcd.Bell // rung when something has happened to the key, to the lease, or to what is wanted
	prefix string
	id     int64 // what is appended to it, zero for the lease ID; nothing is with exact
	exact  bool

	// key is the full key on the lease held last, value what it is to hold, as it was wanted last.
	key, value string
	// accepted is the value that etcd took last, and refused one that is too large for it, with why: nil where there is
	// none.
	accepted, refused string
	refusal           error
	// seen is what etcd held when it was last read or written, or the watch told of it, at revision rev. told means that an
	// event did, and fresh that it is known just now, so that it need not be read.
	seen        etcd.Entry
	rev         int64
	told, fresh bool
	// settled means that a reconcile has succeeded, and that nothing is held since.
	settled bool
	// conflict means that the key is left to another instance, contested that one has held it since it was put last.
	conflict, contested bool
	fights              fights
	watch               *etcd.Watcher // of the key, nil where there is none
	spent               bool          // whether it is to be replaced

	// puts counts the writes of a key that was missing or wrong.
	puts  int
	signs signs
}

// wanted is what the user wants, and who hears of the lease: the ledger.
type wanted interface {
	// latest takes the value that is wanted now.
	latest() string
	// outdated reports whether it is another one since, and isNew whether that, or a decision, was not taken.
	outdated() bool
	isNew() bool
	// noteLease hears of another lease held, nil where there is none any more.
	noteLease(held *etcd.Keepalive)
}

// use makes the registration ask this store from now on.
func (r *registration) use(on store) { r.store, r.leases.store = on, on }

// conflictError tells why the key is left to another instance.
func (r *registration) conflictError() error {
	if r.isAnothers() {
		return fmt.Errorf("discov: %s: %w, under lease %d", r.name(), ErrConflict, r.seen.Lease)
	}
	again := time.Now().Add(r.fights.untilNext(r.seen.Exists())).Format(time.TimeOnly)
	return fmt.Errorf("discov: %s: %w of late: it is free, and taken again at %s", r.name(), ErrConflict, again)
}

// fullKey returns the key on the lease held, as far as it is known.
func (r *registration) fullKey() string {
	switch {
	case r.exact, !r.isNamed():
		return r.prefix
	case r.id != 0:
		return withID(r.prefix, r.id)
	default:
		return withID(r.prefix, int64(r.leases.held.ID))
	}
}

// isNamed reports whether the key is whole: one that ends with a lease ID is so once there is a lease.
func (r *registration) isNamed() bool {
	return r.exact || r.id != 0 || r.leases.held != nil
}

// noteLease implements leaseholder.
func (r *registration) noteLease(held *etcd.Keepalive) {
	if held != nil {
		held.Bell = r.bell
	}
	r.wanted.noteLease(held)
}

// findLeases implements leaseholder: of those that hold a key of ours, it returns our own. An account that may not read the
// key has to try the latest.
func (r *registration) findLeases(ctx context.Context) ([]clientv3.LeaseID, error) {
	var key string
	whole := r.exact || r.id != 0
	if whole {
		key = r.fullKey()
	} else {
		key = r.prefix + "/" + r.leases.family.digits()
	}
	found, err := r.store.Leases(ctx, key, whole)
	if etcd.IsDenied(err) {
		return r.leases.family.recent(), nil
	}
	ours := found[:0]
	for _, id := range found {
		if r.leases.family.has(id) {
			ours = append(ours, id)
		}
	}
	return ours, err
}

// sawItsEnd implements leaseholder: the watch has told that the key went, and goes on, as none does through a restore but
// behind a proxy, and that would have to come between the two (because: after a mass revoke, ten thousand Publishers looked
// for leases that a restore might have brought back, and the last key was back after 194 ms instead of 106).
func (r *registration) sawItsEnd() bool {
	return r.told && !r.seen.Exists() && r.watch != nil && !r.watch.HasEnded()
}

func (r *registration) failed(step string, err error) error {
	return fmt.Errorf("discov: %s %s: %w", step, r.name(), err)
}

// name returns the full key, or what is known of it.
func (r *registration) name() string { return cmp.Or(r.key, r.prefix) }

// noteRev takes etcd's revision from the answer to a read or a write. One that went back means that etcd was wiped or
// restored: then past leases of ours may be there again, with keys.
func (r *registration) noteRev(rev int64) {
	if rev < r.rev {
		r.leases.suspicions++
		r.signs.wentBack = true
		r.unwatch() // what it tells is of another past
	}
	r.rev, r.told = rev, false
}

// isRight reports whether what was seen is what is wanted.
func (r *registration) isRight() bool { return r.holds(r.value) }

// holds reports whether what was seen is this value under the lease held.
func (r *registration) holds(value string) bool {
	return r.seen.Exists() && r.leases.isHeld(r.seen.Lease) && r.seen.Value == value
}

// isAnothers reports whether what was seen is held by another instance: by a lease that is none of ours. A key without a
// lease is nobody's.
func (r *registration) isAnothers() bool {
	return r.seen.Exists() && r.isOfAnother(r.seen.Lease)
}

func (r *registration) isOfAnother(id clientv3.LeaseID) bool {
	return id != clientv3.NoLease && !r.leases.family.has(id)
}

// watchKey watches the key, from what was read or written last. A watch that there is goes on, unless it is spent.
func (r *registration) watchKey() {
	if r.spent {
		r.unwatch()
	}
	if r.watch == nil {
		r.watch = r.store.Watch(r.key, r.seen, r.rev, r.bell)
	}
}

// unwatch ends the watch, if there is one.
func (r *registration) unwatch() {
	if r.watch != nil {
		r.watch.Cancel()
	}
	r.watch, r.spent = nil, false
}
