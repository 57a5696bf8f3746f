package discov

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/etcd"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// lease is a lease of ours, and what is known of it. The zero lease is none.
type lease struct {
	id  clientv3.LeaseID
	ttl time.Duration
	// until is when the lease ends at the soonest if nobody renews it, by our clock: counted from before the last request
	// that was answered. gone is when it ends at the latest: counted from the end of the last request, answered or not.
	until, gone time.Time
	// renewal is when the next one is due.
	renewal time.Time
	// denied says that etcd refused to renew it. It is asked alone then, because a denial ends the stream of all.
	denied bool
	// stray says that etcd may grant it, or may have: nobody has heard. Nothing was put on it.
	stray bool
}

// renewed notes that etcd gave the lease its TTL, answering a request made at asked.
func (l *lease) renewed(asked time.Time, seconds int64) {
	l.denied = false
	l.ttl = time.Duration(seconds) * time.Second
	l.until, l.gone = asked.Add(l.ttl), time.Now().Add(l.ttl)
	// A third of the TTL, as the client does: it leaves two more tries.
	l.renewal = asked.Add(backoff.Jitter(l.ttl / 3))
}

// leases are those of a registration: the one that it holds, and former ones that are to be gone.
type leases struct {
	store   store
	asked   time.Duration // the TTL to ask for
	held    lease
	former  []lease
	past    []clientv3.LeaseID // that etcd said do not exist any more, the latest few
	onRenew func(lease)
}

const (
	// pastLeases is how many are remembered, in case that etcd is restored to a time when one of them held the key.
	pastLeases = 16
	// strayLeases is how many there may be when another lease is asked for.
	strayLeases = 2
)

// secure makes sure that a lease is held: grants one where there is none, renews it where that is due. It says no where
// the lease that was held is gone.
func (ls *leases) secure(ctx context.Context) (kept bool, err error) {
	if ls.isHeld() && time.Now().Before(ls.held.renewal) {
		return true, nil
	}
	if ls.isHeld() {
		err := ls.renew(ctx)
		if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return true, err
		}
	}
	return false, ls.grant(ctx)
}

func (ls *leases) isHeld() bool { return ls.held.id != clientv3.NoLease }

// grant asks for a lease. What was asked for without an answer is to be revoked, and first, where that were too many.
func (ls *leases) grant(ctx context.Context) error {
	if err := ls.store.Ready(ctx); err != nil {
		return err
	}
	if strays := ls.strays(); len(strays) >= strayLeases {
		if err := ls.swept(ls.revoke(ctx, strays)); err != nil {
			return err
		}
	}
	asked := time.Now()
	id, seconds, strays, err := ls.store.Grant(ctx, int64(ls.asked/time.Second))
	for _, stray := range strays {
		ls.former = append(ls.former, lease{id: stray, gone: time.Now().Add(ls.asked), stray: true})
	}
	if err != nil {
		return err
	}
	ls.held = lease{id: id}
	ls.held.renewed(asked, seconds)
	ls.onRenew(ls.held)
	return nil
}

// strays returns those of the former leases that are, without the ones that have ended by now.
func (ls *leases) strays() (strays []lease) {
	now := time.Now()
	ls.former = slices.DeleteFunc(ls.former, func(one lease) bool { return one.stray && now.After(one.gone) })
	for _, one := range ls.former {
		if one.stray {
			strays = append(strays, one)
		}
	}
	return strays
}

// renewal is one try to renew the lease held.
type renewal struct {
	asked   time.Time
	seconds int64
	rev     int64 // etcd's revision
	err     error
	unsent  bool // because there was no connection
}

// renew renews the lease held.
func (ls *leases) renew(ctx context.Context) error {
	return ls.take(<-ls.ask(ctx, 0))
}

// ask asks for a renewal of the lease held. The answer comes when etcd has given it, or when ctx is done. It may take as
// long as within, and as any other may.
func (ls *leases) ask(ctx context.Context, within time.Duration) <-chan renewal {
	answer := make(chan renewal, 1)
	id, denied := ls.held.id, ls.held.denied
	go func() {
		err := ls.store.Ready(ctx)
		one := renewal{asked: time.Now(), err: err, unsent: err != nil}
		if err == nil {
			one.seconds, one.rev, one.err = ls.store.Renew(ctx, id, denied, within)
		}
		answer <- one
	}()
	return answer
}

// take notes what an answer says of the lease held.
func (ls *leases) take(one renewal) error {
	switch {
	case one.err == nil:
		ls.held.renewed(one.asked, one.seconds)
		ls.onRenew(ls.held)
	case errors.Is(one.err, rpctypes.ErrLeaseNotFound):
		ls.lost()
	case etcd.IsDenied(one.err):
		ls.held.denied = true
	case !one.unsent:
		ls.held.gone = time.Now().Add(ls.held.ttl)
	}
	return one.err
}

// lost makes the lease held a past one: etcd says that it does not exist.
func (ls *leases) lost() {
	ls.isGone(ls.held.id)
	ls.held = lease{}
	ls.onRenew(ls.held)
}

// isGone notes that etcd said that the lease does not exist any more.
func (ls *leases) isGone(id clientv3.LeaseID) {
	ls.past = append(ls.past, id)
	ls.past = ls.past[max(0, len(ls.past)-pastLeases):]
}

// discard makes the lease held a former one.
func (ls *leases) discard() {
	if ls.isHeld() {
		ls.former = append(ls.former, ls.held)
		ls.held = lease{}
	}
}

// sweep revokes the former leases. Those that could not be revoked stay for the next sweep.
func (ls *leases) sweep(ctx context.Context) error {
	return ls.swept(ls.revoke(ctx, ls.former))
}

// revocations are the outcome of a sweep: those of the leases that are gone, and why not all are.
type revocations struct {
	gone []clientv3.LeaseID
	err  error
}

// startSweep begins a sweep, whose outcome comes when etcd has given it, or when ctx is done: nil where there is nothing
// to sweep.
func (ls *leases) startSweep(ctx context.Context) <-chan revocations {
	if len(ls.former) == 0 {
		return nil
	}
	outcome := make(chan revocations, 1)
	former := slices.Clone(ls.former)
	go func() { outcome <- ls.revoke(ctx, former) }()
	return outcome
}

// revoke revokes leases, all at once.
func (ls *leases) revoke(ctx context.Context, these []lease) (outcome revocations) {
	errs := make([]error, len(these))
	var all sync.WaitGroup
	for i, one := range these {
		all.Go(func() { errs[i] = ls.store.Revoke(ctx, one.id) })
	}
	all.Wait()
	for i, one := range these {
		if errs[i] == nil {
			outcome.gone = append(outcome.gone, one.id)
		}
	}
	outcome.err = cmp.Or(errs...)
	return outcome
}

// swept notes the outcome of a sweep.
func (ls *leases) swept(outcome revocations) error {
	for _, id := range outcome.gone {
		ls.isGone(id)
	}
	ls.former = slices.DeleteFunc(ls.former, func(one lease) bool { return slices.Contains(outcome.gone, one.id) })
	return outcome.err
}

// reviveAll makes the past leases former ones, to be revoked: etcd was restored, and one may be there again.
func (ls *leases) reviveAll() {
	for _, id := range ls.past {
		ls.former = append(ls.former, lease{id: id, gone: time.Now().Add(ls.asked)})
	}
	ls.past = nil
}

// isOurs says whether the lease is one of ours.
func (ls *leases) isOurs(id clientv3.LeaseID) bool {
	return id == ls.held.id ||
		slices.ContainsFunc(ls.former, func(one lease) bool { return one.id == id }) ||
		ls.isPast(id)
}

// isPast says whether the lease was ours until etcd said that it does not exist any more.
func (ls *leases) isPast(id clientv3.LeaseID) bool {
	return slices.Contains(ls.past, id)
}

// gone is when the last former lease ends by itself, at the latest.
func (ls *leases) gone() time.Time {
	var last time.Time
	for _, one := range ls.former {
		if one.gone.After(last) {
			last = one.gone
		}
	}
	return last
}
