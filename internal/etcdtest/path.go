package etcdtest

import (
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/pkg/v3/proxy"
	"go.uber.org/zap"
)

// A Path is a network path to one endpoint that can be broken and mended. Its own endpoint never changes.
//
//	client ── listener ── link ──(unix socket)── etcd's fault proxy ── target
//
// The proxy carries the bytes, late or not at all; listener and links decide over single connections, which it can't.
// It also leaves a connection open for ever when the target refuses one; here such a connection is reset.
type Path struct {
	t      testing.TB
	scheme string // "https://" or ""
	addr   string
	socket string
	proxy  proxy.Server
	wg     sync.WaitGroup

	mu       sync.Mutex // guards all below
	listener net.Listener
	links    map[*link]struct{}
	healed   chan struct{} // closed except while swallowing
	closed   bool
}

// link is one connection of a client, and its counterpart to the proxy.
type link struct {
	client *net.TCPConn
	up     net.Conn
	deaf   atomic.Bool
	heard  atomic.Bool // the target has answered something, so it was reached
	closed chan struct{}
	once   sync.Once
}

// NewPath returns a path to the target, one endpoint of a server, without any fault.
func NewPath(t testing.TB, target string) *Path {
	t.Helper()
	scheme, host, found := strings.Cut(target, "://")
	if !found {
		scheme, host = "", target
	}
	dir, err := os.MkdirTemp("", "etcdtest") // not t.TempDir: a socket's name has 107 bytes
	if err != nil {
		t.Fatalf("etcdtest: path: %v", err)
	}
	p := &Path{
		t:      t,
		addr:   FreeAddr(t),
		socket: filepath.Join(dir, "s"),
		links:  map[*link]struct{}{},
		healed: make(chan struct{}),
	}
	close(p.healed)
	if scheme == "https" {
		p.scheme = "https://"
	}
	p.proxy = proxy.NewServer(proxy.ServerConfig{
		Logger: zap.NewNop(),
		From:   url.URL{Scheme: "unix", Host: p.socket},
		To:     url.URL{Scheme: "tcp", Host: host},
	})
	t.Cleanup(func() {
		p.Close()
		os.RemoveAll(dir)
	})
	select {
	case <-p.proxy.Ready():
	case <-p.proxy.Done():
		t.Fatalf("etcdtest: path: %v", <-p.proxy.Error())
	}
	p.wg.Go(p.hear)
	p.Accept()
	return p
}

// Endpoint returns where the path begins: host:port, or https://host:port where the target's is https.
func (p *Path) Endpoint() string { return p.scheme + p.addr }

// Connections returns how many connections of clients are open.
func (p *Path) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

// Swallow makes the path silent: connections are accepted, bytes too (up to what buffers hold), nothing is forwarded in
// either direction and nothing is closed. Like a network that loses all packets for a while, it loses no byte: after
// Heal everything arrives, late, and what the target closed meanwhile is closed then.
func (p *Path) Swallow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.swallowing() { // the proxy would lose what it paused for the first time
		p.healed = make(chan struct{})
		p.proxy.PauseTx()
		p.proxy.PauseRx()
	}
}

// Heal ends Swallow. Connections that DeafenCurrent made deaf stay so.
func (p *Path) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.swallowing() {
		p.proxy.UnpauseTx()
		p.proxy.UnpauseRx()
		close(p.healed)
	}
}

func (p *Path) swallowing() bool {
	select {
	case <-p.healed:
		return false
	default:
		return true
	}
}

// DeafenCurrent makes every connection that is open now deaf for ever: it accepts bytes, answers nothing and is never
// closed, from either end. What was on its way already may still arrive. Later connections work.
func (p *Path) DeafenCurrent() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.deaf.Store(true)
		// A write that waits for room would keep the link from taking more.
		l.up.SetWriteDeadline(time.Now())
		l.client.SetWriteDeadline(time.Now())
	}
}

// Reset resets every connection that is open now, deaf ones too, and returns when they are gone.
func (p *Path) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.reset()
		delete(p.links, l)
	}
}

// Refuse makes the path refuse new connections. Open ones stay.
func (p *Path) Refuse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		p.listener.Close()
		p.listener = nil
	}
}

// Accept ends Refuse.
func (p *Path) Accept() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil || p.closed {
		return
	}
	l, err := net.Listen("tcp4", p.addr)
	if err != nil {
		p.t.Fatalf("etcdtest: path: %v", err)
	}
	p.listener = l
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.carry(c.(*net.TCPConn)) })
		}
	})
}

// Latency delays what goes through, each way by d; 0 ends it. Chunks wait one after the other, so that many in a row
// are late by more.
func (p *Path) Latency(d time.Duration) {
	if d <= 0 {
		p.proxy.UndelayTx()
		p.proxy.UndelayRx()
		return
	}
	p.proxy.DelayTx(d, 0)
	p.proxy.DelayRx(d, 0)
}

// Close closes everything, and returns when nothing of the path is left. The end of the test does it too. Where the
// target has stopped reading in the middle of many bytes, as a frozen process does, the last of it goes with the target.
func (p *Path) Close() {
	p.Refuse()
	p.mu.Lock()
	p.closed = true
	for l := range p.links {
		l.close()
	}
	p.mu.Unlock()
	gone := make(chan struct{})
	go func() {
		p.proxy.Close()
		p.wg.Wait()
		close(gone)
	}()
	select {
	case <-gone:
	case <-time.After(time.Second):
	}
}

// carry is the life of one connection.
func (p *Path) carry(client *net.TCPConn) {
	// Under the lock, so that hear finds the link when the proxy can't reach the target. It takes no time: a socket.
	p.mu.Lock()
	up, err := net.Dial("unix", p.socket)
	if err != nil || p.closed {
		p.mu.Unlock()
		client.SetLinger(0)
		client.Close()
		if err == nil {
			up.Close()
		}
		return
	}
	l := &link{client: client, up: up, closed: make(chan struct{})}
	p.links[l] = struct{}{}
	p.mu.Unlock()

	p.wg.Go(func() {
		l.answer()
		p.hangUp(l)
	})
	l.send()
	l.close()
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
}

// send carries what the client sends, until the client is gone.
func (l *link) send() {
	buf := make([]byte, 32<<10)
	for {
		n, err := l.client.Read(buf)
		if err != nil {
			return
		}
		if !l.deaf.Load() {
			l.up.Write(buf[:n]) // where this fails, answer knows as well
		}
	}
}

// answer carries what the target answers, until the target is gone.
func (l *link) answer() {
	buf := make([]byte, 32<<10)
	for {
		n, err := l.up.Read(buf)
		if err != nil {
			return
		}
		l.heard.Store(true)
		if !l.deaf.Load() {
			l.client.Write(buf[:n])
		}
	}
}

// hangUp tells the client that the target is gone, as soon as the path lets that through.
func (p *Path) hangUp(l *link) {
	l.up.Close()
	for {
		p.mu.Lock()
		healed, swallowing := p.healed, p.swallowing()
		if l.deaf.Load() {
			p.mu.Unlock()
			return // send goes on reading
		}
		if !swallowing {
			if l.heard.Load() {
				l.close()
			} else {
				l.reset()
			}
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
		select {
		case <-healed:
		case <-l.closed:
			return
		}
	}
}

// hear reads the errors of the proxy, which stops without that after 16 of them. On one that says that the target
// could not be reached, it ends the links to nowhere, which the proxy leaves open: those that were never answered.
func (p *Path) hear() {
	for {
		select {
		case err := <-p.proxy.Error():
			var op *net.OpError
			if errors.As(err, &op) && op.Op == "dial" {
				p.mu.Lock()
				for l := range p.links {
					if !l.heard.Load() {
						l.up.Close()
					}
				}
				p.mu.Unlock()
			}
		case <-p.proxy.Done():
			return
		}
	}
}

func (l *link) close() {
	l.once.Do(func() { close(l.closed) })
	l.client.Close()
	l.up.Close()
}

func (l *link) reset() {
	l.client.SetLinger(0)
	l.close()
}
