// Package grpctest serves fake etcds over connections in memory, which keep to the virtual time of testing/synctest.
package grpctest

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
)

// Serve serves what register registers, and returns a connection to it, each way of which takes latency. Both end with the
// test.
func Serve(t testing.TB, latency time.Duration, register func(*grpc.Server), opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	server := grpc.NewServer(grpc.WaitForHandlers(true))
	register(server)
	listener := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- server.Serve(&slowListener{listener, latency}) }()
	opts = append(opts,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := listener.DialContext(ctx)
			return slow(conn, latency), err
		}))
	cc, err := grpc.NewClient("passthrough:///etcd", opts...)
	if err != nil {
		t.Fatalf("grpctest: %v", err)
	}
	t.Cleanup(func() {
		_ = cc.Close() // it fails only where it was closed before
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("grpctest: serve: %v", err)
		}
	})
	return cc
}

// slowListener accepts connections that are slow to write to.
type slowListener struct {
	net.Listener
	latency time.Duration
}

func (l *slowListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return slow(conn, l.latency), err
}

// slowConn is a connection whose other side reads what is written to it later.
type slowConn struct {
	net.Conn
	latency time.Duration
	written chan packet
	closed  chan struct{}
	close   func()
}

type packet struct {
	due  time.Time
	data []byte
}

func slow(conn net.Conn, latency time.Duration) net.Conn {
	if conn == nil || latency == 0 {
		return conn
	}
	c := &slowConn{Conn: conn, latency: latency, written: make(chan packet, 1<<10), closed: make(chan struct{})}
	c.close = sync.OnceFunc(func() { close(c.closed) })
	go c.deliver()
	return c
}

func (c *slowConn) deliver() {
	for {
		select {
		case p := <-c.written:
			select {
			case <-time.After(time.Until(p.due)):
			case <-c.closed:
				return
			}
			if _, err := c.Conn.Write(p.data); err != nil {
				return
			}
		case <-c.closed:
			return
		}
	}
}

// Write implements net.Conn.
func (c *slowConn) Write(b []byte) (int, error) {
	select {
	case c.written <- packet{time.Now().Add(c.latency), append([]byte(nil), b...)}:
		return len(b), nil
	case <-c.closed:
		return 0, net.ErrClosed
	}
}

// Close implements net.Conn.
func (c *slowConn) Close() error {
	c.close()
	return c.Conn.Close()
}
