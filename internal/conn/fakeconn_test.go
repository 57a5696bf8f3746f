package conn

import (
	"context"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

func (f *fakeEtcd) dial(ctx context.Context, addr string) (net.Conn, error) {
	f.mu.Lock()
	f.dials = append(f.dials, f.since())
	roundTrip, refused := f.roundTrip, f.refused
	f.mu.Unlock()
	if refused != nil {
		return nil, refused
	}
	conn, err := f.listeners[addr].DialContext(ctx)
	if err != nil {
		return nil, err
	}
	d := &fakeConn{Conn: conn, addr: addr, roundTrip: roundTrip, arrived: make(chan chunk, 1000), closed: make(chan struct{})}
	go d.receive()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns = append(f.conns, d)
	return d, nil
}

// fakeConn is a connection whose answers take as long as a round trip, and which may become deaf: then it takes bytes, and
// answers none.
type fakeConn struct {
	net.Conn
	addr      string
	roundTrip time.Duration
	arrived   chan chunk
	rest      []byte

	deaf   atomic.Bool
	once   sync.Once
	closed chan struct{}
}

// chunk is what comes in at once.
type chunk struct {
	due   time.Time
	bytes []byte
	err   error
}

func (d *fakeConn) receive() {
	for {
		bytes := make([]byte, 1<<15)
		n, err := d.Conn.Read(bytes)
		if !d.deaf.Load() {
			d.arrived <- chunk{time.Now().Add(d.roundTrip), bytes[:n], err}
		}
		if err != nil {
			return
		}
	}
}

func (d *fakeConn) Read(b []byte) (int, error) {
	if len(d.rest) == 0 {
		var one chunk
		select {
		case one = <-d.arrived:
		case <-d.closed:
			return 0, net.ErrClosed
		}
		select {
		case <-time.After(time.Until(one.due)):
		case <-d.closed:
			return 0, net.ErrClosed
		}
		if one.err != nil {
			return 0, one.err
		}
		d.rest = one.bytes
	}
	n := copy(b, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

func (d *fakeConn) Write(b []byte) (int, error) {
	if d.deaf.Load() {
		return len(b), nil
	}
	return d.Conn.Write(b)
}

func (d *fakeConn) Close() error {
	d.once.Do(func() { close(d.closed) })
	return d.Conn.Close()
}

// deafen makes all connections of now deaf, or those to these members.
func (f *fakeEtcd) deafen(addrs ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.conns {
		if len(addrs) == 0 || slices.Contains(addrs, d.addr) {
			d.deaf.Store(true)
		}
	}
}

// refuse makes it refuse connections to come; nil ends that.
func (f *fakeEtcd) refuse(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refused = err
}

// hangUp closes all connections of now.
func (f *fakeEtcd) hangUp() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.conns {
		d.Conn.Close()
	}
}
