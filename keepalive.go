package discov

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/etcd"
)

// keeper is the goroutine of a started Publisher. It makes etcd equal to what the user wants.
type keeper struct {
	*ledger
	opts  *options     // nobody writes them
	doubt error        // why the last hold has ended
	reg   registration // in one piece with it: many small ones would lie scattered in the heap
	// connect gives it its etcd, unless one of the two is done first.
	connect func(bound, stop context.Context) (connected, error)
}

// connected is etcd as a Publisher sees it.
type connected struct {
	// first is for the first registration, which has one bound for all that it asks for, and usual for all that comes after.
	first, usual store
	// release gives both back.
	release func()
}

// run is the keeper's life: a first registration, which answers KeepAlive, and then what the user wants, until that is to
// stop. Where the first registration fails, or its caller has given up, it is undone.
func (k *keeper) run(first *start) {
	growStack()
	on, err := k.connectFirst(first)
	if err != nil {
		k.fail(first, err, nil)
		return
	}
	var left leases
	for first != nil {
		r := k.newRegistration(on.first, left)
		failed := k.begin(first, r)
		r.use(on.usual)
		if failed = k.begun(first, failed); failed == nil {
			k.stay(r, on.release)
			return
		}
		first = k.undo(first, failed, r, on.release)
		left = r.leases
	}
}

// stay goes on after the first registration, on a goroutine of its own: as long as there is nothing to do, that has a stack
// of 2 KB. The one of a goroutine that has made a request is 8 KB, of which the garbage collector takes back half.
func (k *keeper) stay(r *registration, release func()) {
	rests := k.isWanted() && r.rests()
	if rests {
		r.watchKey()
	}
	go func() {
		if rests {
			<-r.bell
		}
		growStack()
		left := k.keep(r)
		release()
		k.finish(left)
	}()
}

// keep makes etcd equal to what the user wants, until that is to stop. It returns what could not be withdrawn.
func (k *keeper) keep(r *registration) error {
	for {
		switch want, latch := k.heed(); want {
		case wantPublished:
			k.publish(latch, r)
		case wantWithheld:
			k.stayWithdrawn(latch, r)
		case wantStopped:
			return k.withdrawForGood(r)
		}
	}
}

// publish reconciles and holds in turn, until ctx is done.
func (k *keeper) publish(ctx context.Context, r *registration) {
	retry, quick := backoff.New(), 0
	k.doubt = nil
	for ctx.Err() == nil {
		if !r.settled {
			if err := k.reconcile(ctx, r); err != nil {
				if !isCutShort(ctx) {
					k.enter(StateRegistering, err)
				}
				k.restAfter(ctx, r, retry, err)
				continue
			}
		}
		began := time.Now()
		doubt := k.hold(ctx, r)
		if errors.Is(doubt, errValueUpdated) {
			continue
		}
		k.doubt = doubt
		if quick++; time.Since(began) > calm {
			quick = 0
			retry.Reset()
		}
		if quick > quickDoubts {
			retry.Wait(ctx)
		}
	}
}

// restAfter pauses after a try that failed. A value that is too large for etcd, with none before it, is not sent again for a
// while, unless there is another one.
func (k *keeper) restAfter(ctx context.Context, r *registration, retry *backoff.Backoff, err error) {
	if !etcd.IsTooLarge(err) {
		r.rest(ctx, retry, err)
		return
	}
	again := time.NewTimer(tooLargeAgain)
	defer again.Stop()
	for !k.isNew() {
		select {
		case <-k.wish.bell:
		case <-again.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// connectFirst connects. A start in the background that is not connected at once is promised, and goes on trying.
func (k *keeper) connectFirst(first *start) (connected, error) {
	if !k.opts.backgroundStart {
		return k.connect(first.bound, k.wish.stop)
	}
	late := time.AfterFunc(connectAtOnce, func() { k.promise(first) })
	on, err := k.connect(k.wish.stop, k.wish.stop)
	if inTime := late.Stop(); inTime && err != nil {
		return connected{}, err
	}
	k.promise(first)
	for retry := backoff.New(); err != nil; on, err = k.connect(k.wish.stop, k.wish.stop) {
		k.noteUnconnected(err)
		if !retry.Wait(k.wish.stop) {
			return connected{}, err
		}
	}
	return on, nil
}

// newRegistration has what is left of the leases of the one before, which was withdrawn. It is filled field by field (because:
// a literal took 500 bytes of the frame of run, and with them each first put grew the stack to 16 KB).
func (k *keeper) newRegistration(on store, left leases) *registration {
	r := &k.reg
	*r = registration{}
	r.wanted, r.bell = k.ledger, k.wish.bell
	r.prefix, r.exact, r.id = k.prefix, k.opts.exactKey, k.opts.id
	r.leases.of, r.leases.family, r.leases.ttl = r, &k.family, k.opts.ttl
	r.leases.former, r.leases.suspicions = left.former, left.suspicions
	r.use(on)
	return r
}

// begin makes the first registration, unless the user wants something else meanwhile. A try that failed is told when there
// is another one: of the last one, fail tells.
func (k *keeper) begin(first *start, r *registration) error {
	if k.opts.backgroundStart {
		return nil
	}
	var failed error
	end := cleanUpFrom(first.bound)
	for retry := backoff.New(); ; {
		ctx, cancel := context.WithDeadline(first.bound, end)
		want, latch := k.tryFirst(cancel)
		if want != wantPublished {
			cancel()
			return nil
		}
		if failed != nil {
			k.enter(StateRegistering, failed)
		}
		failed = moreTelling(failed, k.reconcile(ctx, r))
		again := failed != nil && !etcd.IsFinal(failed) && retry.Wait(ctx)
		cancel()
		if failed == nil || !again && !latch.isSet() {
			return failed
		}
		if latch.isSet() {
			failed = nil // the user has cut it short
		}
	}
}

// moreTelling is the error of the last try, or that of the one before where it names a failed handshake: gRPC tells of
// that only when nothing else comes in between.
func moreTelling(before, last error) error {
	if last != nil && before != nil && strings.Contains(before.Error(), "tls: ") && !strings.Contains(last.Error(), "tls: ") {
		return before
	}
	return last
}

// cleanUpFrom is when a first registration has to have succeeded, early enough before its bound to clean up.
func cleanUpFrom(bound context.Context) time.Time {
	deadline, _ := bound.Deadline()
	return deadline.Add(-time.Until(deadline) / cleanUpShare)
}

// undo withdraws what a first registration that failed may have left, and answers KeepAlive at its bound. What is left then
// is withdrawn until nothing is, or until the next KeepAlive, which it returns.
func (k *keeper) undo(s *start, failed error, r *registration, release func()) (next *start) {
	left := k.cleanUp(s.bound, r)
	if left == nil {
		release()
		k.fail(s, failed, nil)
		return nil
	}
	k.fail(s, failed, left)
	err := k.clear(r)
	next, stopped := k.cleared()
	if next != nil {
		return next
	}
	release()
	if stopped {
		k.finish(err)
	}
	return nil
}

// cleanUp withdraws as far as the bound allows.
func (k *keeper) cleanUp(bound context.Context, r *registration) (left *WithdrawError) {
	deadline, _ := bound.Deadline()
	if least := time.Now().Add(cleanUpAtLeast); bound.Err() != nil || deadline.Before(least) {
		deadline = least
	}
	ctx, cancel := context.WithDeadline(context.WithoutCancel(bound), deadline)
	defer cancel()
	for retry := backoff.New(); ; {
		err := r.withdraw(ctx)
		if err == nil {
			return nil
		}
		if etcd.IsFinal(err) || !retry.Wait(ctx) {
			return k.withdrawError(r.leases.gone(), err)
		}
	}
}

// clear withdraws until nothing is left, by itself at the latest, or until the next KeepAlive.
func (k *keeper) clear(r *registration) error {
	gone := r.leases.gone()
	if gone.IsZero() { // it is not known what is left
		gone = time.Now().Add(k.opts.ttl)
	}
	ctx, cancel := context.WithDeadline(*k.nextCame, gone) // which nobody replaces meanwhile
	defer cancel()
	for retry := backoff.New(); ; {
		err := r.withdraw(ctx)
		if err == nil {
			return nil
		}
		if !isCutShort(ctx) {
			k.stillLeft(err)
		}
		if !r.rest(ctx, retry, err) {
			return k.withdrawError(gone, err)
		}
	}
}

// reconcile makes etcd hold the latest value, and tells. An error is noted, for its caller to tell.
func (k *keeper) reconcile(ctx context.Context, r *registration) error {
	takeover, puts := k.beginTry(), r.puts
	err := r.reconcile(ctx, takeover)
	k.mu.Lock()
	defer k.mu.Unlock()
	if r.isNamed() {
		k.status.Key = r.key
	}
	k.counters.registrations += int64(r.puts - puts)
	if err != nil && isCutShort(ctx) {
		k.counters.lose(r.signs.causeOfLoss(r.leases.ended, k.doubt, nil))
		return err
	}
	k.countLossLocked(r, r.puts > puts, err)
	switch {
	case err != nil:
		k.counters.failures++
		k.noteErrorLocked(err)
	case r.conflict:
		k.conflictLocked(r.conflictError())
	default:
		k.counters.publish(r.puts > puts)
		k.publishedLocked(takeover, r.refusal)
		k.doubt, r.signs, r.leases.ended = nil, signs{}, false
	}
	return err
}

// countLossLocked counts that the key was lost, or could not be confirmed.
func (k *keeper) countLossLocked(r *registration, put bool, err error) {
	switch {
	case r.conflict && err == nil:
		k.counters.lose(CauseKeyChanged)
	case put || err != nil:
		k.counters.lose(r.signs.causeOfLoss(r.leases.ended, k.doubt, err))
	}
}

// isCutShort reports whether the user has made what was under way pointless, so that its error tells nothing.
func isCutShort(ctx context.Context) bool {
	return errors.Is(ctx.Err(), context.Canceled)
}

// hold keeps the registration until there is a doubt, and tells of one that is a loss.
func (k *keeper) hold(ctx context.Context, r *registration) (doubt error) {
	doubt = r.hold(ctx)
	if ctx.Err() == nil && isLoss(doubt) {
		k.lost(doubt)
	}
	return doubt
}

// stayWithdrawn withdraws the key and keeps it so, until ctx is done.
func (k *keeper) stayWithdrawn(ctx context.Context, r *registration) {
	if k.withdraw(ctx, r) != nil {
		return
	}
	k.rest()
	r.guard(ctx)
}

// withdrawForGood withdraws for Stop, and gives up after one TTL: the lease has ended then, unless etcd was restarted.
func (k *keeper) withdrawForGood(r *registration) error {
	ctx, cancel := context.WithTimeout(context.Background(), max(k.opts.ttl, k.snapshot().TTL))
	defer cancel()
	if err := k.withdraw(ctx, r); err != nil {
		return k.withdrawError(r.leases.gone(), err)
	}
	return nil
}

// withdraw revokes the leases of ours, again and again until ctx is done.
func (k *keeper) withdraw(ctx context.Context, r *registration) error {
	r.leases.discard()
	k.withdrawing(r.leases.gone(), nil)
	for retry := backoff.New(); ; {
		err := r.withdraw(ctx)
		if err == nil {
			k.noteWithdrawn()
			return nil
		}
		if !isCutShort(ctx) {
			k.withdrawing(r.leases.gone(), err)
		}
		if !r.rest(ctx, retry, err) {
			return err
		}
	}
}
