package discov

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// quota bounds the lines of trouble in the log: a thousand Publishers lose their leases all at once.
type quota struct {
	mu         sync.Mutex
	left       float64
	counted    time.Time
	suppressed int
}

func newQuota() *quota {
	return &quota{left: linesBurst, counted: time.Now()}
}

// take reports whether a line may be written, and how many were held back since the last one.
func (q *quota) take() (ok bool, suppressed int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	q.left = min(linesBurst, q.left+float64(now.Sub(q.counted))/float64(linesRefill))
	q.counted = now
	if q.left < 1 {
		q.suppressed++
		return false, 0
	}
	q.left--
	suppressed, q.suppressed = q.suppressed, 0
	return true, suppressed
}

// teller hands events to the log and to the observers, which are the user's code: in order, one at a time, on a goroutine
// of its own that lives while there are events. None can hold up or break a registration.
type teller struct {
	logger    *slog.Logger
	observers []func(Event)
	unheard   bool // whether nobody hears: there is no observer, and the log is discarded

	telling bool // whether there is a goroutine; guarded by mu, as all below

	mu      sync.Mutex
	quota   *quota // the connection's, once there is one; nil where none was needed before
	waiting []Event
	missed  int

	// Only the goroutine touches what follows.
	trouble  time.Time // when the trouble of now began, zero where all is well
	reminded time.Time
	interval time.Duration
}

func newTeller(observers []func(Event), logger *slog.Logger) *teller {
	unheard := len(observers) == 0 && logger.Handler() == slog.DiscardHandler
	return &teller{observers: observers, logger: logger, unheard: unheard}
}

// share makes the log's quota that of all Publishers on a connection.
func (t *teller) share(q *quota) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.quota = q
}

func (t *teller) add(event Event) {
	if t.unheard {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) == eventsKept {
		t.waiting = t.waiting[1:]
		t.missed++
	}
	t.waiting = append(t.waiting, event)
	if !t.telling && (len(t.observers) > 0 || !event.isPassing()) {
		t.telling = true
		go t.run()
	}
}

// isPassing reports whether an event is told with the next one where nobody observes: that a Publisher has begun to register
// goes to the log for debugging, and a goroutine for it would cost more than it is worth.
func (e Event) isPassing() bool { return e.To == StateRegistering && e.Err == nil }

func (t *teller) run() {
	for {
		event, missed, ok := t.next()
		if !ok {
			return
		}
		t.guard("logger", func() {
			if missed > 0 {
				t.logger.Warn("discov: a slow observer or logger missed events", "missed", missed)
			}
			t.log(event)
		})
		for _, observe := range t.observers {
			t.guard("observer", func() { observe(event) })
		}
	}
}

func (t *teller) next() (event Event, missed int, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) == 0 {
		t.waiting, t.telling = nil, false
		return Event{}, 0, false
	}
	event, missed = t.waiting[0], t.missed
	t.waiting, t.missed = t.waiting[1:], 0
	return event, missed, true
}

// guard runs the user's code. A panic in it, or slowness, goes to the log.
func (t *teller) guard(whose string, run func()) {
	slow := time.AfterFunc(slowObserver, func() { t.warn("discov: the " + whose + " is slow") })
	defer func() {
		slow.Stop()
		if p := recover(); p != nil {
			t.warn("discov: the "+whose+" panicked", "panic", p)
		}
	}()
	run()
}

// warnAside logs what is wrong, but may be meant, beside the events.
func (t *teller) warnAside(message string, args ...any) {
	go t.guard("logger", func() { t.logger.Warn(message, args...) })
}

// warn logs what went wrong in the user's code, which may be the logger itself.
func (t *teller) warn(message string, args ...any) {
	defer func() { _ = recover() }()
	t.logger.Warn(message, args...)
}

// log tells what a reader with a pager wants to know: what was lost, since when, why, and when it was back.
func (t *teller) log(e Event) {
	if e.From != e.To && !isDrawn(e.From, e.To) {
		t.write(slog.LevelError, "discov: a bug: the diagram has no way between these states", e, "from", e.From, "to", e.To)
	}
	switch {
	case e.From == e.To && e.To == StatePublished: // an Update that etcd does not take
		t.writeTrouble(slog.LevelWarn, "discov: the latest value is refused", e)
	case e.From == e.To:
		t.remind(e)
	case e.To == StatePublished:
		t.logPublished(e)
	case e.To == StateConflict:
		t.begin(e, "discov: another instance holds the key")
	case e.To == StateRegistering && e.Err != nil:
		t.begin(e, "discov: the registration is lost or in doubt")
	case e.To == StateUnhealthy:
		t.begin(e, "discov: withdrawn while the health check fails")
	case e.To == StatePaused, e.To == StateStopped:
		t.trouble = time.Time{}
		t.write(slog.LevelInfo, "discov: "+e.To.String(), e)
	default:
		if e.To == StateIdle {
			t.trouble = time.Time{} // KeepAlive has returned why
		}
		t.write(slog.LevelDebug, "discov: "+e.To.String(), e)
	}
}

func (t *teller) logPublished(e Event) {
	if t.trouble.IsZero() {
		t.write(slog.LevelInfo, "discov: registered", e)
		return
	}
	t.writeTrouble(slog.LevelInfo, "discov: registered again", e, "after", text(e.Time.Sub(t.trouble)))
	t.trouble = time.Time{}
}

func (t *teller) begin(e Event, message string) {
	if t.trouble.IsZero() {
		t.trouble, t.interval = e.Time, firstReminder
	}
	t.reminded = e.Time
	t.writeTrouble(slog.LevelWarn, message, e)
}

func (t *teller) remind(e Event) {
	if t.trouble.IsZero() {
		t.begin(e, "discov: "+e.To.String()+" is not done yet")
		return
	}
	if e.Time.Sub(t.reminded) < t.interval {
		t.write(slog.LevelDebug, "discov: tried again", e)
		return
	}
	t.reminded, t.interval = e.Time, min(2*t.interval, reminders)
	t.writeTrouble(slog.LevelWarn, "discov: still in trouble", e, "for", text(e.Time.Sub(t.trouble)))
}

// writeTrouble writes within the quota.
func (t *teller) writeTrouble(level slog.Level, message string, e Event, args ...any) {
	ok, suppressed := t.lines().take()
	if !ok {
		level = slog.LevelDebug
	}
	if suppressed > 0 {
		args = append(args, "suppressed", suppressed)
	}
	t.write(level, message, e, args...)
}

// lines returns the quota that counts: the Publisher's own before there is a connection.
func (t *teller) lines() *quota {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.quota == nil {
		t.quota = newQuota()
	}
	return t.quota
}

// text is how durations are logged: as a number, JSON would have them in nanoseconds.
func text(d time.Duration) string { return d.Round(time.Millisecond).String() }

func (t *teller) write(level slog.Level, message string, e Event, args ...any) {
	args = append(args, "key", e.Key, "lease", int64(e.Lease))
	if e.Err != nil {
		args = append(args, "err", e.Err)
	}
	t.logger.Log(context.Background(), level, message, args...)
}
