package discov

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/etcd"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// checkEvery is how often a key that is held is read, jittered, in case that a watch missed something.
	checkEvery = 30 * time.Second
	// A key is taken back from another instance at most takeBacks times in takeBackWindow.
	takeBacks      = 2
	takeBackWindow = time.Minute
	// reconcileRounds bounds the writes, values and leases that may change under one reconcile.
	reconcileRounds = 5
)

// Why hold ends: each is a doubt that reconcile settles.
var (
	errKeyChanged   = errors.New("the key was changed")
	errKeyGone      = errors.New("the key was deleted")
	errValueUpdated = errors.New("the value was updated")
)

// errStillChanging ends a reconcile under which the key, its value or its lease changed each time.
var errStillChanging = errors.New("it keeps being changed")

// registration is a key on a lease. Only the Publisher's goroutine touches it.
type registration struct {
	store  store
	leases leases

	latest   func() string // the value that is wanted now
	outdated func() bool   // whether it is another one since
	prefix   string
	suffixed bool  // whether something is appended to the prefix
	id       int64 // what, or zero for the lease ID

	// key is the full key on the lease held last, value what it is to hold, as it was wanted last.
	key, value string
	// accepted is the value that etcd took last, and refused one that is too large for it, with why: nil where there is
	// none.
	accepted, refused string
	refusal           error
	// seen is what etcd held when it was last read or written, at revision rev.
	seen etcd.Entry
	rev  int64
	// known says that what was seen is most likely still so, so that a read can be saved; missing, that the key is not
	// there.
	known, missing bool
	// settled says that a reconcile has succeeded, and that nothing is held since.
	settled bool
	// conflict says that the key is held by another instance, contested that one has held it since it was put last.
	conflict, contested bool
	// taken is when the key was taken back from another instance of late.
	taken []time.Time
	// watch is of the key named watched, nil where there is none. rewatched says that a member has refused it, and that the
	// next one was asked.
	watch     *etcd.Watcher
	watched   string
	rewatched bool

	// puts counts the writes of a key that was missing or wrong.
	puts int
}

// fullKey is the key on the lease held, as far as it is known.
func (r *registration) fullKey() string {
	switch {
	case !r.suffixed, !r.isNamed():
		return r.prefix
	case r.id != 0:
		return r.prefix + "/" + strconv.FormatInt(r.id, 10)
	default:
		return r.prefix + "/" + strconv.FormatInt(int64(r.leases.held.id), 10)
	}
}

// isNamed says whether the key is whole: one that ends with a lease ID is so once there is a lease.
func (r *registration) isNamed() bool {
	return !r.suffixed || r.id != 0 || r.leases.isHeld()
}

// reconcile makes etcd hold the key with the latest value under a lease of ours, and changes nothing that is right. With
// takeover it puts over whatever is there; without, it leaves the key to another instance that holds it, and says so in
// conflict.
func (r *registration) reconcile(ctx context.Context, takeover bool) error {
	for range reconcileRounds {
		kept, err := r.leases.secure(ctx)
		r.key = r.fullKey()
		if err != nil {
			if r.leases.isHeld() {
				return r.failed("renew the lease of", err)
			}
			return r.failed("get a lease for", err)
		}
		switch err := r.secureKey(ctx, takeover, kept); {
		case err == nil:
			r.settled = true
			return nil
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			r.leases.lost()
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
	r.refused, r.refusal, r.known = r.value, err, false
	return true
}

// rest pauses after a try that failed, but not where nothing was sent: the next one waits for the connection. It says no
// when ctx is done.
func (r *registration) rest(ctx context.Context, retry *backoff.Backoff, err error) bool {
	if etcd.IsUnsent(err) {
		return ctx.Err() == nil
	}
	return r.store.Pause(ctx, retry.Take())
}

func (r *registration) failed(step string, err error) error {
	return fmt.Errorf("discov: %s %s: %w", step, r.name(), err)
}

// name is the full key, or what is known of it.
func (r *registration) name() string { return cmp.Or(r.key, r.prefix) }

// secureKey makes the key right on the lease held.
func (r *registration) secureKey(ctx context.Context, takeover, kept bool) error {
	if takeover {
		r.known = false
		return r.put(ctx)
	}
	switch {
	case r.missing || !kept:
		r.seen = etcd.Entry{} // most likely gone with its lease; putOver says if not
	case r.known:
	default:
		if err := r.read(ctx); err != nil {
			return r.putUnread(ctx, err)
		}
	}
	r.known = false
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

// noteRev takes etcd's revision from the answer to a read or a write. One that went back means that etcd was wiped or
// restored: then past leases of ours may be there again, with keys.
func (r *registration) noteRev(rev int64) {
	if rev < r.rev {
		r.leases.reviveAll()
	}
	r.rev = rev
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
	return nil
}

// takeLatest takes the value that is wanted once it can be sent: the one from before an outage is not to be seen after it.
func (r *registration) takeLatest(ctx context.Context) error {
	if err := r.store.Ready(ctx); err != nil {
		return err
	}
	r.value = r.latest()
	if r.refusal != nil && r.value == r.refused {
		r.value = r.accepted
	} else {
		r.refusal = nil
	}
	return nil
}

// write is what makes the key right.
func (r *registration) write() etcd.Write {
	return etcd.Write{Key: r.key, Value: r.value, Lease: r.leases.held.id, Outdated: r.outdated}
}

func (r *registration) wrote(rev int64) {
	r.seen = etcd.Entry{Value: r.value, Lease: r.leases.held.id, Rev: rev}
	r.noteRev(rev)
	r.noteHeld()
	r.puts++
}

// noteHeld notes that etcd holds what is wanted.
func (r *registration) noteHeld() {
	r.missing, r.conflict, r.contested = false, false, false
	r.accepted = r.value
}

// mend compares what was seen with what is wanted and writes at most once. It is done when the key is right, or is
// another's.
func (r *registration) mend(ctx context.Context) (done bool, err error) {
	if err := r.takeLatest(ctx); err != nil {
		return true, r.failed("put", err)
	}
	switch {
	case r.isRight():
		r.noteTakeBack() // the answer to an earlier write may have been lost
		r.noteHeld()
		return true, nil
	case r.isAnothers(), r.contested && !r.mayTakeBack():
		r.missing, r.conflict, r.contested = false, true, true
		return true, nil
	}
	if r.leases.isPast(r.seen.Lease) {
		r.leases.reviveAll()
	}
	put, now, rev, err := r.store.PutOver(ctx, r.seen, r.write())
	if err != nil {
		if etcd.IsDenied(err) {
			return true, r.putUnread(ctx, r.failed("put", err))
		}
		return true, r.failed("put", err)
	}
	if !put {
		r.seen, r.missing = now, false
		r.noteRev(rev)
		return false, nil
	}
	r.noteTakeBack()
	r.wrote(rev)
	return true, nil
}

// noteTakeBack counts a key that is held again after another instance has held it.
func (r *registration) noteTakeBack() {
	if r.contested {
		r.taken = append(r.taken[max(0, len(r.taken)-takeBacks+1):], time.Now())
	}
}

// isRight says whether what was seen is what is wanted.
func (r *registration) isRight() bool {
	return r.seen.Exists() && r.seen.Lease == r.leases.held.id && r.seen.Value == r.value
}

// isAnothers says whether what was seen is held by another instance: by a lease that is none of ours. A key without a
// lease is nobody's.
func (r *registration) isAnothers() bool {
	return r.seen.Exists() && r.isOfAnother(r.seen.Lease)
}

func (r *registration) isOfAnother(id clientv3.LeaseID) bool {
	return id != clientv3.NoLease && !r.leases.isOurs(id)
}

// mayTakeBack says whether the key was not taken back too often of late: two instances with one id would fight for ever.
func (r *registration) mayTakeBack() bool {
	return len(r.taken) < takeBacks || time.Since(r.taken[len(r.taken)-takeBacks]) > takeBackWindow
}

// watchKey watches the key, from what was read or written last. A watch that there is goes on.
func (r *registration) watchKey() *etcd.Watcher {
	if r.watch == nil || r.watched != r.key {
		r.unwatch()
		r.watch, r.watched = r.store.Watch(r.key, r.rev+1), r.key
	}
	return r.watch
}

func (r *registration) unwatch() {
	if r.watch != nil {
		r.watch.Cancel()
		r.watch = nil
	}
}

// hold keeps the lease renewed and watches the key, until ctx is done or there is a doubt, which it returns. A watch
// outlives the doubt whether the value is the latest.
func (r *registration) hold(ctx context.Context, updated <-chan struct{}) (doubt error) {
	r.settled, r.rewatched = false, false
	news := r.watchKey().Signal
	defer func() {
		if !errors.Is(doubt, errValueUpdated) {
			r.unwatch()
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	var answer <-chan renewal         // nil where none is awaited
	var found <-chan look             // the same
	swept := r.leases.startSweep(ctx) // the same; of leases that were replaced, now that the key is on another
	defer func() {
		cancel()
		if answer != nil {
			_ = r.leases.take(<-answer) // what is to be known of the lease's end
		}
		if swept != nil {
			_ = r.leases.swept(<-swept)
		}
		if found != nil {
			<-found
		}
	}()
	due := time.NewTimer(time.Until(r.leases.held.renewal))
	defer due.Stop()
	check := time.NewTimer(r.untilCheck())
	defer check.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-updated:
			r.known = r.isRight() // by the watch
			return errValueUpdated
		case <-check.C:
			found = r.look(ctx)
		case one := <-found:
			found = nil
			if doubt := r.looked(one); doubt != nil {
				return doubt
			}
			check.Reset(r.untilCheck())
		case <-news:
			unwatchable, doubt := r.hear()
			if doubt != nil {
				return doubt
			}
			if news = r.watch.Signal; unwatchable {
				news = nil
			}
			if found == nil {
				check.Reset(r.untilCheck())
			}
		case <-due.C:
			// While the lease lives, a slow answer is no reason for doubt.
			answer = r.leases.ask(ctx, time.Until(r.leases.held.until))
		case one := <-answer:
			answer = nil
			if doubt := r.renewed(one); doubt != nil {
				return doubt
			}
			due.Reset(time.Until(r.leases.held.renewal))
			if swept == nil {
				swept = r.leases.startSweep(ctx)
			}
		case outcome := <-swept:
			_ = r.leases.swept(outcome) // what is left is tried again after the next renewal
			swept = nil
		}
	}
}

// untilCheck is when to look at the key next: sooner where it is free but was taken back too often.
func (r *registration) untilCheck() time.Duration {
	if r.conflict && !r.isAnothers() {
		return max(0, time.Until(r.taken[len(r.taken)-takeBacks].Add(takeBackWindow))) + backoff.Jitter(time.Second)
	}
	return backoff.Jitter(checkEvery)
}

// look is one read of the key while it is held, in case that the watch missed something.
type look struct {
	after int64 // what was known when it began
	now   etcd.Entry
	rev   int64
	err   error
}

// look reads the key while renewals go on. The answer comes when etcd has given it, or when ctx is done.
func (r *registration) look(ctx context.Context) <-chan look {
	found := make(chan look, 1)
	key, after := r.key, r.rev
	go func() {
		one := look{after: after}
		one.now, one.rev, one.err = r.store.Get(ctx, key)
		found <- one
	}()
	return found
}

// looked takes what a look has found, unless the watch has told of more meanwhile.
func (r *registration) looked(one look) error {
	switch {
	case one.err != nil:
		return r.failed("read", one.err)
	case one.after != r.rev:
		return nil
	}
	r.seen = one.now
	r.noteRev(one.rev)
	return r.doubtSeen()
}

// renewed takes the answer to a renewal.
func (r *registration) renewed(one renewal) error {
	if err := r.leases.take(one); err != nil {
		return r.failed("renew the lease of", err)
	}
	if one.rev < r.rev {
		return etcd.ErrWentBack
	}
	return nil
}

// hear takes what the watch has to tell: nothing of interest, a doubt, or that the account may not watch.
func (r *registration) hear() (unwatchable bool, doubt error) {
	last, news, err := r.watch.Take()
	if news && last.Rev > r.rev { // not from before what was read or written last
		r.seen, r.rev = last.Now, last.Rev
		r.contested = r.contested || r.isOfAnother(last.Held)
		if doubt := r.doubtSeen(); doubt != nil {
			return false, doubt
		}
	}
	switch {
	case err == nil:
		return false, nil
	case etcd.IsDenied(err):
		return true, nil
	case etcd.IsOfOneMember(err) && !r.rewatched:
		r.rewatched = true
		r.unwatch()
		r.watchKey()
		return false, nil
	default:
		return false, r.failed("watch", err)
	}
}

// doubtSeen is the doubt in what the watch has told: none where the key is right, or is to be left to another instance.
func (r *registration) doubtSeen() error {
	switch {
	case r.conflict && (r.isAnothers() || !r.mayTakeBack()), !r.conflict && r.isRight():
		return nil
	case !r.seen.Exists():
		r.missing = true
		return errKeyGone
	default:
		return errKeyChanged
	}
}

// guard keeps the key withdrawn until ctx is done: an etcd that was restored has a lease of ours again, and the key with it.
// As long as the connection lasts, so does etcd.
func (r *registration) guard(ctx context.Context) {
	for r.store.Reconnected(ctx) {
		for retry := backoff.New(); ; {
			if err := r.withdrawRestored(ctx); err == nil || !r.rest(ctx, retry, err) {
				break
			}
		}
	}
}

// withdrawRestored revokes the leases of ours that etcd may have again.
func (r *registration) withdrawRestored(ctx context.Context) error {
	if r.key == "" {
		return nil
	}
	err := r.read(ctx)
	if err != nil && !etcd.IsDenied(err) {
		return err
	}
	if err != nil || r.leases.isPast(r.seen.Lease) {
		r.leases.reviveAll()
	}
	return r.withdraw(ctx)
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
	r.seen, r.missing, r.conflict, r.contested = etcd.Entry{}, false, false, false
	return nil
}
