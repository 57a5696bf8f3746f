package conn

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/discov-go/discov/internal/etcd"
)

// do makes a request over the link of now, and over the next one where that is replaced meanwhile.
func do[T any](ctx context.Context, c *requester, request func(context.Context, *link) (T, error)) (answer T, err error) {
	for {
		l := c.links.enter()
		answer, err = onLink(ctx, c, l, request)
		moved := l.left.Err() != nil
		l.calls.Done()
		if err == nil || !moved || ctx.Err() != nil {
			return answer, err
		}
	}
}

// onLink makes a request over a link. Where one member cannot do it, the next is asked at once.
func onLink[T any](ctx context.Context, c *requester, l *link, request func(context.Context, *link) (T, error)) (answer T, err error) {
	if l.isClosedByCaller() {
		return answer, etcd.ErrClientClosed
	}
	answer, err = again(ctx, c, l, request)
	if etcd.IsOfOneMember(err) && ctx.Err() == nil && l.members() > 1 && l.ready.isReady() {
		answer, err = again(ctx, c, l, request)
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
func again[T any](ctx context.Context, c *requester, l *link, request func(context.Context, *link) (T, error)) (T, error) {
	r := newRace(ctx, c, l, request)
	defer r.end()
	r.try()
	return r.answer, r.err
}

// noted notes that a request was answered, and how long that took if nothing else was waited for.
func noted[T any](request func(context.Context, *link) (T, error)) func(context.Context, *link) (T, error) {
	return func(ctx context.Context, l *link) (answer T, err error) {
		began, connected := time.Now(), l.ready.isReady()
		answer, err = request(ctx, l)
		if err == nil {
			l.noteAnswer(began, connected)
		}
		return answer, err
	}
}

// noteAnswer notes that a request has an answer, and since when it was on its way, if there was a connection.
func (l *link) noteAnswer(began time.Time, connected bool) {
	if connected {
		l.pulse.NoteRoundTrip(began, time.Now())
	} else {
		l.pulse.NoteAnswer()
	}
}

// Why a request ends before its context does.
var (
	errOvertaken = errors.New("another try of the request has ended")
	errLeft      = errors.New("the link was given up")
)

// race is among the tries of one request: the first that ends wins, and ends the others.
type race[T any] struct {
	pending pending
	links   *links
	link    *link
	request func(context.Context, *link) (T, error)
	ctx     context.Context
	cancel  context.CancelCauseFunc

	once   sync.Once
	answer T
	err    error
}

func newRace[T any](ctx context.Context, c *requester, l *link, request func(context.Context, *link) (T, error)) *race[T] {
	r := &race[T]{links: c.links, link: l, request: request}
	r.pending = pending{attended: r, patience: c.patienceOn(l), pause: max(askAgain, l.pulse.Late())}
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	l.attendant.attend(&r.pending)
	return r
}

// end ends all tries that are left.
func (r *race[T]) end() {
	r.link.attendant.dismiss(&r.pending)
	r.cancel(nil)
}

// try makes the request once.
func (r *race[T]) try() {
	answer, err := r.request(r.ctx, r.link)
	r.once.Do(func() {
		r.answer, r.err = answer, err
		r.cancel(errOvertaken)
	})
}

func (r *race[T]) giveUp() { r.cancel(errLeft) }

func (r *race[T]) suspect() bool {
	// With several members, one that is silent may hide behind the answers of the others.
	return (r.link.pulse.IsSilentSince(r.pending.began) || r.link.members() > 1) && r.links.suspect(r.link)
}

func (r *race[T]) repeat() {
	l := r.link
	isDone := r.ctx.Err() != nil || !l.ready.isReady()
	if !isDone && l.pulse.Silence() == nil && !l.account.IsLoggingIn() && !l.pulse.IsQueue(r.pending.began, max(r.pending.pause, queueAtLeast)) {
		l.calls.Go(r.try)
	}
}
