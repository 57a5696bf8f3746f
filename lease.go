package discov

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/etcd"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// familySize is how many lease IDs a Publisher has: its last digits count them, the other fifteen are drawn by lot.
const familySize = 10_000

// family is the lease IDs of one Publisher. All have nineteen digits, of which the first fifteen are the same, so that one
// read of the keys that begin with them finds all that were ever put under a lease ID, without a memory: also those that a
// restore of etcd has brought back.
type family struct {
	base int64 // the ID that ends with zeros
	used int64 // how many were given
}

func newFamily() family {
	const least, end = 100_000_000_000_000, 922_337_203_685_477 // of nineteen digits, and below 2^63
	base := (least + rand.Int64N(end-least)) * familySize       //nolint:gosec // must be unlikely to be taken, not to be guessed
	return family{base: base}
}

// next returns an ID that was not given, or very long ago.
func (f *family) next() clientv3.LeaseID {
	f.used++
	return f.at(f.used)
}

func (f *family) at(n int64) clientv3.LeaseID { return clientv3.LeaseID(f.base + n%familySize) }

// has reports whether the lease is one of the Publisher's.
func (f *family) has(id clientv3.LeaseID) bool { return int64(id)-int64(id)%familySize == f.base }

// digits returns what all IDs begin with.
func (f *family) digits() string { return strconv.FormatInt(f.base/familySize, 10) }

// recent returns the IDs that were given last.
func (f *family) recent() (ids []clientv3.LeaseID) {
	for n := f.used; n > max(0, f.used-recentLeases); n-- {
		ids = append(ids, f.at(n))
	}
	return ids
}

// formerLease is a lease of ours that is to be gone.
type formerLease struct {
	id clientv3.LeaseID
	// gone is when it ends by itself at the latest.
	gone time.Time
	// stray means that etcd may grant it, or may have: nobody has heard. Nothing was put on it.
	stray bool
}

// leases are those of a registration: the one that it holds, and former ones.
type leases struct {
	store  store
	family *family
	ttl    time.Duration   // to ask for, or what was granted, where that was more
	held   *etcd.Keepalive // nil where there is none
	ended  bool            // whether one that was held has ended, since the key was there last
	former []formerLease
	// suspicions counts the reasons to think that etcd has a lease of ours that is neither: it was restored, or may have
	// been.
	suspicions int
	of         leaseholder
}

// leaseholder is whose leases they are: the registration.
type leaseholder interface {
	// findLeases returns those that hold a key of ours.
	findLeases(ctx context.Context) ([]clientv3.LeaseID, error)
	// sawItsEnd reports whether the lease held has ended as leases do, with its key; where nobody has seen that, etcd may
	// have been restored.
	sawItsEnd() bool
	// noteLease hears of another lease held, before it is kept alive; nil where there is none any more.
	noteLease(held *etcd.Keepalive)
}

// secure makes sure that a lease is held: grants one where there is none, and renews it where its time is up. It returns
// false where the lease that was held is gone.
func (ls *leases) secure(ctx context.Context) (kept bool, err error) {
	if ls.held != nil && time.Now().Before(ls.held.Until()) && !ls.held.IsDenied() {
		return true, nil
	}
	if ls.held != nil {
		err := ls.store.Renew(ctx, ls.held)
		if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return true, err
		}
		ls.lose()
	}
	return false, ls.grant(ctx)
}

// grant asks for a lease. What was asked for without an answer is to be revoked, and first, where that were too many.
func (ls *leases) grant(ctx context.Context) error {
	if err := ls.store.Ready(ctx); err != nil {
		return err
	}
	ls.forgetStrays()
	if strays := ls.strays(); len(strays) >= strayLeases {
		if err := ls.revoke(ctx, strays); err != nil {
			return err
		}
	}
	lease, strays, err := ls.store.Grant(ctx, ls.ttl, ls.family.next)
	for _, stray := range strays {
		ls.former = append(ls.former, formerLease{id: stray, gone: time.Now().Add(ls.ttl), stray: true})
	}
	if err != nil {
		return err
	}
	ls.held, ls.ttl = lease, max(ls.ttl, lease.TTL)
	ls.of.noteLease(lease)
	ls.store.KeepAlive(lease)
	return nil
}

// forgetStrays forgets the strays that have ended by now.
func (ls *leases) forgetStrays() {
	now := time.Now()
	ls.former = slices.DeleteFunc(ls.former, func(one formerLease) bool { return one.stray && now.After(one.gone) })
}

// strays returns the former leases that etcd may grant yet, or may have.
func (ls *leases) strays() (strays []formerLease) {
	for _, one := range ls.former {
		if one.stray {
			strays = append(strays, one)
		}
	}
	return strays
}

// lose forgets the lease held: etcd says that it does not exist.
func (ls *leases) lose() {
	ls.store.LetGo(ls.held)
	ls.held, ls.ended = nil, true
	if !ls.of.sawItsEnd() {
		ls.suspicions++
	}
	ls.of.noteLease(nil)
}

// discard makes the lease held a former one.
func (ls *leases) discard() {
	if ls.held != nil {
		ls.store.LetGo(ls.held)
		ls.former = append(ls.former, formerLease{id: ls.held.ID, gone: ls.held.Gone()})
		ls.held = nil
	}
}

// disown makes a lease of ours that holds the key, but is not held, a former one.
func (ls *leases) disown(id clientv3.LeaseID) {
	if !contains(ls.former, id) {
		ls.former = append(ls.former, formerLease{id: id, gone: time.Now().Add(ls.ttl)})
	}
}

func contains(these []formerLease, id clientv3.LeaseID) bool {
	return slices.ContainsFunc(these, func(one formerLease) bool { return one.id == id })
}

// isHeld reports whether the lease is the one that is held.
func (ls *leases) isHeld(id clientv3.LeaseID) bool { return ls.held != nil && ls.held.ID == id }

// isClean reports whether there is nothing to sweep.
func (ls *leases) isClean() bool { return len(ls.former) == 0 && ls.suspicions == 0 }

// sweep revokes all leases of ours but the one held. Those that could not be revoked stay for the next sweep.
func (ls *leases) sweep(ctx context.Context) error {
	var notFound error
	if ls.suspicions > 0 {
		notFound = ls.search(ctx)
	}
	return cmp.Or(notFound, ls.revoke(ctx, ls.former))
}

// search makes former ones of the leases of ours that etcd has.
func (ls *leases) search(ctx context.Context) error {
	found, err := ls.of.findLeases(ctx)
	if err != nil {
		return err
	}
	ls.suspicions = 0
	for _, id := range found {
		if !ls.isHeld(id) {
			ls.disown(id)
		}
	}
	return nil
}

// sweepBeside sweeps in the background, again and again until all is clean or ctx is done. The function that it returns
// ends that, and notes what it has come to.
func (ls *leases) sweepBeside(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	beside, suspicions := *ls, ls.suspicions
	beside.former = slices.Clone(ls.former)
	go func() {
		defer close(done)
		for beside.sweep(ctx) != nil && backoff.Pause(ctx, sweepEvery) {
		}
	}()
	return func() {
		cancel()
		<-done
		ls.former = beside.former
		ls.suspicions += beside.suspicions - suspicions
	}
}

// revoke revokes leases, all at once, and forgets those that were.
func (ls *leases) revoke(ctx context.Context, these []formerLease) error {
	errs := make([]error, len(these))
	var all sync.WaitGroup
	for i, one := range these {
		all.Go(func() { errs[i] = ls.store.Revoke(ctx, one.id) })
	}
	all.Wait()
	var revoked []clientv3.LeaseID
	for i, one := range these {
		if errs[i] == nil {
			revoked = append(revoked, one.id)
		}
	}
	ls.former = slices.DeleteFunc(ls.former, func(one formerLease) bool { return slices.Contains(revoked, one.id) })
	return cmp.Or(errs...)
}

// gone returns when the last former lease ends by itself, at the latest.
func (ls *leases) gone() time.Time {
	var last time.Time
	for _, one := range ls.former {
		if one.gone.After(last) {
			last = one.gone
		}
	}
	return last
}
