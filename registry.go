package discov

import (
	"context"
	"fmt"
	"sync"

	"github.com/discov-go/discov/internal/conn"
)

// connections are those of the process.
var connections = newRegistry()

// registry shares one connection among all Publishers with the same target, and counts them.
type registry struct {
	mu    sync.Mutex
	conns map[conn.Target]*sharedConn
}

func newRegistry() *registry {
	return &registry{conns: map[conn.Target]*sharedConn{}}
}

// sharedConn is a connection and those who share it.
type sharedConn struct {
	target conn.Target
	lines  *quota // of the logs of those who share it
	users  int    // guarded by the registry's mu

	warned sync.Once     // of what is wrong with the target, but may be meant
	opened chan struct{} // closed when what follows is there
	conn   *conn.Conn
	err    error
}

// acquire returns the connection to the target, dialled once for all who ask at the same time. It returns early if bound or
// stop is done first; the dial goes on for the others. Each acquire that returns no error wants a release.
func (r *registry) acquire(bound, stop context.Context, to conn.Target) (*sharedConn, error) {
	s := r.join(to)
	if err := s.await(bound, stop); err != nil {
		go r.leave(s)
		return nil, fmt.Errorf("discov: make a client for %s: %w", to, err)
	}
	if s.err != nil {
		r.release(s)
		return nil, s.err
	}
	return s, nil
}

// await waits until the connection is open. One that is open is no error, also where bound or stop is done.
func (s *sharedConn) await(bound, stop context.Context) error {
	select {
	case <-s.opened:
		return nil
	default:
	}
	select {
	case <-s.opened:
		return nil
	case <-bound.Done():
		return causeOf(bound)
	case <-stop.Done():
		return causeOf(stop)
	}
}

// join counts a user of the connection to the target, which is dialled for the first one.
func (r *registry) join(to conn.Target) *sharedConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.conns[to]
	if s == nil {
		s = &sharedConn{target: to, lines: newQuota(), opened: make(chan struct{}), err: errTuningEnded}
		r.conns[to] = s
		go s.open()
	}
	s.users++
	return s
}

// errTuningEnded is returned where the user's tuning has ended its goroutine, as testing's FailNow does.
var errTuningEnded = fmt.Errorf("%w: WithClientConfig ended its goroutine", ErrOptions)

func (s *sharedConn) open() {
	defer close(s.opened)
	s.conn, s.err = conn.Open(s.target)
}

// leave is release for who has not waited until it is open.
func (r *registry) leave(s *sharedConn) {
	<-s.opened
	r.release(s)
}

// release gives a connection back; the last one closes it. The calls of the one who releases must have ended. A connection
// that could not be opened serves nobody else.
func (r *registry) release(s *sharedConn) {
	r.mu.Lock()
	s.users--
	last := s.users == 0
	if (last || s.err != nil) && r.conns[s.target] == s {
		delete(r.conns, s.target)
	}
	r.mu.Unlock()
	if last && s.conn != nil {
		s.conn.Close()
	}
}
