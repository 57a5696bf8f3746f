package discov

import (
	"context"

	"github.com/discov-go/discov/internal/etcd"
)

// latch is a fact as a channel, closed while it holds: its Done. As a context it ends the calls to etcd that it makes
// pointless.
type latch struct {
	context.Context
	set context.CancelFunc
}

func newLatch() latch {
	ctx, cancel := context.WithCancel(context.Background())
	return latch{ctx, cancel}
}

func (l latch) isSet() bool { return l.Err() != nil }

// longSet is a latch that is set.
var longSet = func() latch {
	l := newLatch()
	l.set()
	return l
}()

// wakeup wakes all who wait for it.
type wakeup struct{ next chan struct{} }

// heard returns a channel that is closed when all are woken next.
func (w *wakeup) heard() <-chan struct{} {
	if w.next == nil {
		w.next = make(chan struct{})
	}
	return w.next
}

func (w *wakeup) wake() {
	if w.next != nil {
		close(w.next)
		w.next = nil
	}
}

// want is what the user wants of the key.
type want int

const (
	wantPublished want = iota
	wantWithheld
	wantStopped
)

// wish is what the user wants: levels, not messages. It only sets and clears them, under the ledger's mu.
type wish struct {
	value   string
	updates uint64 // counts changes of value
	// takeover is whether somebody has decided to publish, and the key was not put since.
	takeover bool

	// isNew is whether there is a value, or a decision, that the goroutine has not taken. The bell is rung for it, and for the
	// latches below.
	isNew bool
	bell  etcd.Bell
	// The key is withheld for either reason: the user has paused it, or the health check has failed, and with what.
	paused  bool
	illness error
	// The goroutine hears the user by these three. pause is set while the key is not to be published, resume while it is
	// not to stay withdrawn, and stop for good, as the other two are then. stop is never replaced, so it may be read
	// without mu.
	pause, resume, stop latch
}

func newWish(value string) wish {
	return wish{value: value, bell: etcd.NewBell(), pause: newLatch(), resume: longSet, stop: newLatch()}
}

// now returns what is wanted, and the latch that is set when that is something else.
func (w *wish) now() (want, latch) {
	switch {
	case w.isStopped():
		return wantStopped, w.stop
	case w.isWithheld():
		return wantWithheld, w.resume
	default:
		return wantPublished, w.pause
	}
}

func (w *wish) isStopped() bool { return w.stop.isSet() }

func (w *wish) isPaused() bool { return w.paused && !w.isStopped() }

func (w *wish) isWithheld() bool { return w.pause.isSet() && !w.isStopped() }

func (w *wish) setPaused() {
	w.paused, w.takeover = true, false
	w.withhold()
}

func (w *wish) clearPaused() {
	w.paused = false
	w.setTakeover()
	w.release()
}

func (w *wish) setIll(why error) {
	w.illness = why
	w.withhold()
}

func (w *wish) clearIll() {
	w.illness = nil
	w.release()
}

func (w *wish) withhold() {
	w.bell.Ring()
	if !w.pause.isSet() {
		w.resume = newLatch()
		w.pause.set()
	}
}

// release ends what withhold has begun, unless there is another reason for it.
func (w *wish) release() {
	if !w.paused && w.illness == nil && !w.isStopped() {
		w.pause = newLatch()
		w.resume.set()
	}
}

func (w *wish) setStopped() {
	w.bell.Ring()
	w.stop.set()
	w.pause.set()
	w.resume.set()
}

func (w *wish) setTakeover() {
	w.takeover = true
	w.tell()
}

func (w *wish) setValue(value string) {
	if value != w.value {
		w.value = value
		w.updates++
		w.tell()
	}
}

func (w *wish) tell() {
	w.isNew = true
	w.bell.Ring()
}

func (w *wish) clearNews() { w.isNew = false }
