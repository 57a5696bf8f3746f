package conn

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/discov-go/discov/internal/bubble"
	"github.com/stretchr/testify/require"
)

// diary is when things were done.
type diary struct {
	began time.Time
	at    []time.Duration
}

func (d *diary) note() { d.at = append(d.at, time.Since(d.began)) }

// when returns when things were done until now.
func (d *diary) when() []time.Duration {
	synctest.Wait()
	return d.at
}

// seconds returns as many of these, as durations.
func seconds(n ...int) (d []time.Duration) {
	for _, s := range n {
		d = append(d, time.Duration(s)*time.Second)
	}
	return d
}

// fakeRequest is one whose methods are the test's.
type fakeRequest struct {
	onGiveUp  func()
	onSuspect func() bool
	onRepeat  func()
}

func (r *fakeRequest) giveUp()       { r.onGiveUp() }
func (r *fakeRequest) suspect() bool { return r.onSuspect() }
func (r *fakeRequest) repeat()       { r.onRepeat() }

// quiet returns a pending request for which nothing is done for an hour.
func quiet() (*pending, *fakeRequest) {
	r := &fakeRequest{func() {}, func() bool { return false }, func() {}}
	return &pending{attended: r, patience: time.Hour, pause: time.Hour}, r
}

// attend has a request attended to until done.
func attend(a *attendant, one *pending) (done func()) {
	a.attend(one)
	return func() { a.dismiss(one) }
}

// attendQuiet has one attended to for which nothing is done for an hour.
func attendQuiet(a *attendant) (done func()) {
	one, _ := quiet()
	return attend(a, one)
}

func TestAPendingRequestIsMadeAgainMoreAndMoreRarely(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var a attendant
		repeats := diary{began: time.Now()}
		one, r := quiet()
		one.pause, r.onRepeat = time.Second, repeats.note
		done := attend(&a, one)
		time.Sleep(20 * time.Second)
		done()
		time.Sleep(time.Minute)
		require.Equal(t, seconds(1, 2, 4, 8, 16), repeats.when())
	})
}

func TestAPendingRequestSuspectsItsLinkEachTimeItsPatienceHasPassed(t *testing.T) {
	for told, want := range map[bool][]time.Duration{
		false: seconds(1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
		true:  seconds(1, 2, 4, 8), // half as often each time
	} {
		bubble.Test(t, func(t *testing.T) {
			var a attendant
			doubts := diary{began: time.Now()}
			one, r := quiet()
			one.patience = time.Second
			r.onSuspect = func() bool { doubts.note(); return told }
			done := attend(&a, one)
			time.Sleep(10500 * time.Millisecond)
			done()
			time.Sleep(time.Minute)
			require.Equal(t, want, doubts.when())
		})
	}
}

func TestManyQuickRequestsSetOneTimer(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var a attendant
		attendQuiet(&a)()
		timer := timerOf(&a)
		for range 1000 {
			time.Sleep(time.Millisecond)
			attendQuiet(&a)()
		}
		require.Same(t, timer, timerOf(&a))
		time.Sleep(2 * time.Hour)
		require.Nil(t, timerOf(&a), "there is nothing to look after any more")
	})
}

func timerOf(a *attendant) *time.Timer {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.timer
}

func TestARequestWithLessPatienceIsLookedAfterFirst(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var a attendant
		defer attendQuiet(&a)()
		doubts := diary{began: time.Now()}
		one, r := quiet()
		one.patience = time.Second
		r.onSuspect = func() bool { doubts.note(); return true }
		defer attend(&a, one)()
		time.Sleep(1500 * time.Millisecond)
		require.Equal(t, seconds(1), doubts.when())
	})
}

func TestALinkLooksAfterItsRequestsAtIntervals(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var a attendant
		doubts := diary{began: time.Now()}
		one, r := quiet()
		one.patience = time.Nanosecond
		r.onSuspect = func() bool { doubts.note(); return false }
		defer attend(&a, one)()
		time.Sleep(time.Second + lookAfterLeast/2)
		require.Len(t, doubts.when(), int(time.Second/lookAfterLeast))
	})
}

func TestAllRequestsAreCancelledAlsoThoseToCome(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var a attendant
		cancelled := 0
		request := func() *pending {
			one, r := quiet()
			r.onGiveUp = func() { cancelled++ }
			r.onRepeat = func() { t.Error("repeated") }
			r.onSuspect = func() bool { t.Error("suspected"); return true }
			one.patience, one.pause = time.Second, time.Second
			return one
		}
		done := attend(&a, request())
		attend(&a, request())()
		a.cancelAll()
		require.Equal(t, 1, cancelled)
		a.look() // as one that was under way
		require.Nil(t, timerOf(&a))
		attend(&a, request())()
		require.Equal(t, 2, cancelled)
		time.Sleep(time.Minute)
		done()
	})
}

func TestNothingIsDoneForARequestThatIsDone(t *testing.T) {
	t.Parallel()
	var a attendant
	for range 2000 {
		var isDone atomic.Bool
		one, r := quiet()
		one.patience, one.pause = 0, 0
		r.onSuspect = func() bool { assertNot(t, &isDone); return false }
		r.onRepeat = func() { assertNot(t, &isDone) }
		done := attend(&a, one)
		looked := make(chan struct{})
		go func() {
			defer close(looked)
			a.look()
		}()
		done()
		isDone.Store(true)
		<-looked
	}
}

func assertNot(t *testing.T, done *atomic.Bool) {
	if done.Load() {
		t.Error("after the request was done")
	}
}
