package discov

// What the tests of both packages share.

import (
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// EventLog is an observer that remembers. The zero value is ready to use.
type EventLog struct {
	mu     sync.Mutex
	events []Event
}

// Observe is for WithObserver.
func (l *EventLog) Observe(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

// All returns the events, in order.
func (l *EventLog) All() []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events)
}

// changes returns the events that told a change of state.
func (l *EventLog) changes() []Event {
	return slices.DeleteFunc(l.All(), func(e Event) bool { return e.From == e.To })
}

// states returns the states that were entered, in order.
func (l *EventLog) states() []State {
	var states []State
	for _, e := range l.changes() {
		states = append(states, e.To)
	}
	return states
}

// requireDrawn fails the test where a change of state is not in the diagram, or does not begin where the one before ended.
func (l *EventLog) requireDrawn(t testing.TB) {
	t.Helper()
	at := StateIdle
	for _, e := range l.changes() {
		require.Equalf(t, at, e.From, "an event is missing before %v -> %v: %v", e.From, e.To, l.states())
		require.Containsf(t, transitions[e.From], e.To, "%v -> %v is not in the diagram: %v", e.From, e.To, l.states())
		at = e.To
	}
}

// LogLines keeps what is logged at Info and above. The zero value is ready to use.
type LogLines struct {
	mu    sync.Mutex
	lines []string
}

// Option makes a Publisher log to it.
func (l *LogLines) Option() PubOption { return WithLogger(l.logger()) }

func (l *LogLines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// Write implements io.Writer. A handler of slog's writes a line at a time.
func (l *LogLines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, strings.TrimSuffix(string(line), "\n"))
	return len(line), nil
}

// All returns the lines, in order.
func (l *LogLines) All() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

// Take returns the lines since the last Take, and forgets them.
func (l *LogLines) Take() (lines []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines, l.lines = l.lines, nil
	return lines
}

// String is all of it.
func (l *LogLines) String() string { return strings.Join(l.All(), "\n") }

// Quiet makes a Publisher log nothing.
var Quiet = WithLogger(slog.New(slog.DiscardHandler))

// Dialling gives the client these settings of gRPC's. Publishers given the same option share a connection.
func Dialling(opts ...grpc.DialOption) PubOption {
	return WithClientConfig(func(c *clientv3.Config) { c.DialOptions = append(c.DialOptions, opts...) })
}
