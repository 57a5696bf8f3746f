package conn

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/discov-go/discov/internal/etcd"
)

// The ladder: how a request is tried again. All levels of the library, outermost first:
//
//	who           what                         when                                        until
//	the keeper    a reconcile or a withdrawal  it has failed                               the user wants something else
//	do            a request, on another link   the link was given up under it              its bound
//	onLink        a request, once more         a member could not do it, there are more    its bound
//	again         a request, beside itself     it has no answer for half a second          an answer to either
//	streams       a renewal, a login, a token  its stream has ended or is stuck; it was    an answer
//	                                           rejected, or hangs
//
// The first one is there because only it knows whether the request is still wanted; the second, because links are replaced
// under their users; the third, because the balancer takes turns, so that a repair of two requests would meet the same two
// members each time; the fourth, because a leader that dies takes along what was sent to it, of which etcd tells after 7 s;
// the last one, because renewals share their streams. What opens a stream and what connects is gRPC's, with the settings
// of this package. docs/design.md has what is asked again for another reason than a failure.

// request is what is asked of etcd over a link.
type request[T any] struct {
	send func(context.Context, *link) (T, error)
	// outlasts is for how long an answer is waited for although the one who asked has cancelled it. Zero ends it with its
	// context.
	outlasts time.Duration
	// asksNothing means that it only waits for a connection: its end is no answer of etcd's.
	asksNothing bool
}

// do makes a request over the link of now, and over the next one where that is replaced meanwhile.
func do[T any](ctx context.Context, c *requester, what request[T]) (answer T, err error) {
	for {
		l := c.links.enter()
		answer, err = onLink(ctx, c, l, what)
		moved := l.left.Err() != nil
		l.calls.Done()
		if err == nil || !moved || ctx.Err() != nil {
			return answer, err
		}
	}
}

// onLink makes a request over a link. Where one member cannot do it, the next is asked at once.
func onLink[T any](ctx context.Context, c *requester, l *link, what request[T]) (answer T, err error) {
	if l.isClosedByCaller() {
		return answer, etcd.ErrClientClosed
	}
	answer, err = again(ctx, c, l, what)
	if etcd.IsOfOneMember(err) && ctx.Err() == nil && l.members() > 1 && l.ready.isReady() {
		answer, err = again(ctx, c, l, what)
	}
	switch {
	case err != nil && l.isClosedByCaller():
		return answer, etcd.ErrClientClosed
	case isMute(err) && l.left.Err() == nil && !l.ready.isReady():
		return answer, l.ready.because(err)
	}
	return answer, err
}

// again makes a request, and makes it again while there is no answer for longer than there should be one, unless it seems
// to wait for its turn. It returns what is answered first. While etcd is silent, the link is put in doubt.
func again[T any](ctx context.Context, c *requester, l *link, what request[T]) (T, error) {
	r := newRace(ctx, c, l, what)
	defer r.end()
	r.try()
	return r.answer, r.err
}

// noteAnswer notes that a request has an answer, and since when it was on its way, if there was a connection.
func (l *link) noteAnswer(began time.Time, connected bool) {
	if connected {
		l.pulse.NoteRoundTrip(began, time.Now())
	} else {
		l.pulse.NoteAnswer()
	}
}

// race is among the tries of one request: the first that ends wins, and ends the others.
type race[T any] struct {
	pending pending
	links   *links
	link    *link
	what    request[T]
	asked   context.Context // of the one who asked
	ctx     context.Context // of the tries, which may outlast it
	cancel  context.CancelFunc

	once   sync.Once
	answer T
	err    error
}

func newRace[T any](ctx context.Context, c *requester, l *link, what request[T]) *race[T] {
	r := &race[T]{links: c.links, link: l, what: what, asked: ctx}
	r.pending = pending{attended: r, patience: c.patienceOn(l), pause: max(askAgain, l.pulse.Late())}
	r.ctx, r.cancel = l.outlast(ctx, what.outlasts)
	l.attendant.attend(&r.pending)
	return r
}

// end ends all tries that are left.
func (r *race[T]) end() {
	r.link.attendant.dismiss(&r.pending)
	r.cancel()
}

// try makes the request once. It notes that there is an answer, and how long that took if nothing else was waited for.
func (r *race[T]) try() {
	began, connected := time.Now(), r.link.ready.isReady()
	answer, err := r.what.send(undated{r.ctx}, r.link)
	if err == nil && !r.what.asksNothing {
		r.link.noteAnswer(began, connected)
	}
	r.once.Do(func() {
		r.answer, r.err = answer, err
		r.cancel()
	})
}

// undated hides the deadline of a context from gRPC, which would name it to etcd in each request (because: etcd would set a
// timer for each, and a burst of registrations cost a tenth more CPU time). What is given up is cancelled all the same. Where
// no client is left to cancel, what waits at etcd ends when etcd notices that, as with a raw client that sets no deadline.
type undated struct{ context.Context }

// Deadline implements context.Context.
func (undated) Deadline() (deadline time.Time, ok bool) { return time.Time{}, false }

func (r *race[T]) giveUp() { r.cancel() }

func (r *race[T]) suspect() bool {
	// With several members, one that is silent may hide behind the answers of the others.
	return (r.link.pulse.IsSilentSince(r.pending.began) || r.link.members() > 1) && r.links.suspect(r.link)
}

func (r *race[T]) repeat() {
	l := r.link
	isDone := r.ctx.Err() != nil || r.asked.Err() != nil || !l.ready.isReady()
	if !isDone && l.pulse.Silence() == nil && !l.account.IsLoggingIn() && !l.pulse.IsQueue(r.pending.began, max(r.pending.pause, queueAtLeast)) {
		l.calls.Go(r.try)
	}
}

// outlast returns a context for the tries of a request: it has ctx's deadline, but where ctx is cancelled, it goes on for a
// while, if there is one, unless there was no connection all the time, so that nothing can be under way.
func (l *link) outlast(ctx context.Context, while time.Duration) (context.Context, context.CancelFunc) {
	if while == 0 {
		return context.WithCancel(ctx)
	}
	longer, cancel := withDeadlineOf(ctx)
	connected := l.ready.isReady()
	stop := context.AfterFunc(ctx, func() {
		switch {
		case errors.Is(ctx.Err(), context.DeadlineExceeded): // which ends it by itself
		case connected || l.ready.isReady():
			time.AfterFunc(while, cancel)
		default:
			cancel()
		}
	})
	return longer, func() { stop(); cancel() }
}

// withDeadlineOf returns a context with ctx's values and its deadline, if it has one, that is not cancelled with it.
func withDeadlineOf(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if ctx = context.WithoutCancel(ctx); ok {
		return context.WithDeadline(ctx, deadline)
	}
	return context.WithCancel(ctx)
}
