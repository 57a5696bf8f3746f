// Package etcdtest runs a real etcd for tests and examples, and breaks it: a member or a cluster in this process
// (Start, StartCluster) or in child processes that can be killed and frozen (StartProcess), a network path in front of
// it that loses, delays, refuses or resets (NewPath), etcd's own proxy in front of it (StartProxy), and an observer that
// remembers what happened to every key (Observe). All of it is cleaned up by the end of the test.
//
// Whatever fails in here fails the test that started it, at once; so its methods belong into the test's goroutine.
// Setting ETCDTEST_LOG=1 shows the servers' own logs.
package etcdtest

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
)

const (
	// startTimeout is for a loaded machine; a start takes a tenth of a second to two.
	startTimeout = 30 * time.Second
	// grace is what requests in flight get before a server that stops cuts them off. Without that, etcd waits 7 s for
	// watches and keepalives, which never end.
	grace = 50 * time.Millisecond
)

// A Server is a member in this process.
type Server struct {
	*member
	in *embedded
}

// Start runs one member, ready for requests when Start returns.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	return startOne(t, newServer, opts)
}

func newServer(m *member) *Server {
	s := &Server{member: m, in: &embedded{counter: newCounter()}}
	m.run = s.in
	return s
}

// Requests returns how many RPCs of each method the server has got since Start, by short name: "Put", "Range",
// "LeaseGrant", "LeaseKeepAlive", "Watch", "Authenticate". A stream counts as one, and its messages as "Watch.msg" and
// so on; of these, "Watch.create" and "Watch.cancel" also by themselves. This package's own clients don't count.
func (s *Server) Requests() map[string]int { return s.in.counter.now().Requests }

// OpenStreams returns how many streams of the method, "Watch" or "LeaseKeepAlive", are open on this server.
func (s *Server) OpenStreams(method string) int { return s.in.counter.now().Streams[method] }

// Watchers returns how many watchers are open on this server. This package's own don't count.
func (s *Server) Watchers() int { return s.in.counter.now().Watchers }

// Connections returns how many clients are connected to this server. One that has not sent a request yet counts even
// where it is this package's own. With TLS etcd hides its connections: then it is always 0; see Path.Connections.
func (s *Server) Connections() int { return s.in.counter.now().Connections }

// A member is what a Server and a Process have in common: an address and data that stay the same from start to start.
type member struct {
	*access
	cfg     config
	run     runner
	grouped bool // one of several: its data can't be changed alone

	mu      sync.Mutex // one start or stop at a time; guards all below
	running bool
	saved   string // the directory of Snapshot's copy
}

// A runner is a member's server, here or in a child.
type runner interface {
	open(config) error // returns when it answers its peers
	ready() error      // returns when it answers clients
	stop(how stopping) // returns when it is gone
}

type stopping int

const (
	gracefully stopping = iota // hands over leadership, answers what is in flight
	together                   // the same without handing over: there is nobody to take it
	atOnce                     // SIGKILL, where there is a process to kill
)

// A node is a kind of member that a Group can be made of.
type node interface{ base() *member }

func (m *member) base() *member { return m }

// newMembers reserves names, ports and directories for n members of one cluster.
func newMembers(t testing.TB, n int, opts []Option) []*member {
	t.Helper()
	cfgs := make([]config, n)
	var cluster []string
	for i := range cfgs {
		c := &cfgs[i]
		*c = defaults()
		for _, opt := range opts {
			opt(c)
		}
		if c.Dir == "" {
			c.Dir = t.TempDir()
		} else if n > 1 {
			t.Fatal("etcdtest: WithDir is for one member")
		}
		c.Name = fmt.Sprintf("m%d", i+1)
		c.ClientPort, c.PeerPort = reservePort(t), reservePort(t)
		cluster = append(cluster, c.peer())
	}
	members := make([]*member, n)
	for i, c := range cfgs {
		c.Cluster = strings.Join(cluster, ",")
		members[i] = newMember(t, c, n > 1)
	}
	return members
}

func newMember(t testing.TB, c config, grouped bool) *member {
	return &member{access: newAccess(t, c, []string{c.endpoint()}), cfg: c, grouped: grouped}
}

// successor is a new member in place of m, to join the cluster that runs.
func (m *member) successor() *member {
	c := m.cfg
	c.Name, c.Dir, c.Joins = m.cfg.Name+"b", m.t.TempDir(), true
	c.ClientPort, c.PeerPort = reservePort(m.t), reservePort(m.t)
	return newMember(m.t, c, true)
}

func startOne[M node](t testing.TB, as func(*member) M, opts []Option) M {
	t.Helper()
	m := newMembers(t, 1, opts)[0]
	node := as(m)
	t.Cleanup(func() { m.halt(atOnce) })
	m.Start()
	m.setUp()
	return node
}

func (m *member) setUp() {
	m.t.Helper()
	if err := m.setUpAuth(m.cfg.User, m.cfg.Pass); err != nil {
		m.t.Fatalf("etcdtest: set up auth: %v", err)
	}
}

// Start starts it again on the same data and the same address. Nothing where it runs.
func (m *member) Start() {
	m.t.Helper()
	if err := m.begin(); err != nil {
		m.t.Fatalf("etcdtest: %v", err)
	}
}

func (m *member) begin() error {
	if err := m.open(); err != nil {
		return err
	}
	return m.await()
}

// open starts the server, as far as it comes without its peers.
func (m *member) open() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running {
		return nil
	}
	if err := m.run.open(m.cfg); err != nil {
		return fmt.Errorf("start %s: %w", m.cfg.Name, err)
	}
	m.running = true
	return nil
}

// await waits until it answers clients, and stops it where that fails.
func (m *member) await() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.running {
		return nil
	}
	if err := m.run.ready(); err != nil {
		m.run.stop(atOnce)
		m.running = false
		return fmt.Errorf("start %s: %w", m.cfg.Name, err)
	}
	return nil
}

// Stop stops it in the orderly way, and returns when it is gone. Nothing where it is stopped.
func (m *member) Stop() { m.halt(gracefully) }

func (m *member) halt(how stopping) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running {
		m.run.stop(how)
		m.running = false
	}
}

// Restart is Stop and Start.
func (m *member) Restart() {
	m.t.Helper()
	m.Stop()
	m.Start()
}

// Wipe stops it, deletes its data and starts it on the same address: an empty etcd with the same cluster ID, whose
// revisions begin at 1 again. With auth, the accounts of WithAuth are there again.
func (m *member) Wipe() {
	m.t.Helper()
	m.alone("Wipe")
	m.Stop()
	m.wipe()
	m.Start()
	m.setUp()
}

func (m *member) wipe() {
	m.t.Helper()
	if err := os.RemoveAll(m.cfg.Dir); err != nil {
		m.t.Fatalf("etcdtest: wipe: %v", err)
	}
	m.cfg.Joins = false
	m.wipes.Add(1)
}

// Snapshot keeps a copy of the data for Restore, in place of an earlier one. It stops the server meanwhile.
func (m *member) Snapshot() {
	m.t.Helper()
	m.alone("Snapshot")
	m.Stop()
	m.save()
	m.Start()
}

func (m *member) save() {
	m.t.Helper()
	m.saved = m.t.TempDir()
	if err := os.CopyFS(m.saved, os.DirFS(m.cfg.Dir)); err != nil {
		m.t.Fatalf("etcdtest: snapshot: %v", err)
	}
}

// Restore stops it, puts the data of Snapshot back and starts it: an etcd that has forgotten all since then.
func (m *member) Restore() {
	m.t.Helper()
	m.alone("Restore")
	m.Stop()
	m.load()
	m.Start()
}

func (m *member) load() {
	m.t.Helper()
	if m.saved == "" {
		m.t.Fatal("etcdtest: Restore without Snapshot")
	}
	if err := errors.Join(os.RemoveAll(m.cfg.Dir), os.CopyFS(m.cfg.Dir, os.DirFS(m.saved))); err != nil {
		m.t.Fatalf("etcdtest: restore: %v", err)
	}
	m.restores.Add(1)
}

// alone refuses what a member of several would not survive: its peers remember what it has forgotten.
func (m *member) alone(what string) {
	m.t.Helper()
	if m.grouped {
		m.t.Fatalf("etcdtest: %s is for the whole cluster, not for one of its members", what)
	}
}

// embedded is a server in this process.
type embedded struct {
	counter *counter

	cfg  config
	etcd *embed.Etcd
	grpc chan *grpc.Server // its server of clients, once it serves
}

func (e *embedded) open(c config) error {
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(10 * time.Millisecond) {
		cfg := c.embed()
		serving := make(chan *grpc.Server, 1)
		cfg.GRPCAdditionalServerOptions = []grpc.ServerOption{grpc.StatsHandler(e.counter)}
		cfg.ServiceRegister = func(s *grpc.Server) { serving <- s }
		cfg.UserHandlers = map[string]http.Handler{countsPath: e.counter}
		etcd, err := embed.StartEtcd(cfg)
		if err == nil {
			e.cfg, e.etcd, e.grpc = c, etcd, serving
			return nil
		}
		// The address may still be held by the one before us, for a moment.
		if !strings.Contains(err.Error(), "address already in use") || time.Now().After(deadline) {
			return err
		}
	}
}

func (e *embedded) ready() error {
	late := time.After(startTimeout)
	select {
	case <-e.etcd.Server.ReadyNotify():
	case err := <-e.etcd.Err():
		return err
	case <-late:
		return errors.New("not ready in time")
	}
	// A member that is ready has yet to read its certificate and to begin to serve.
	for !greets(e.cfg) {
		select {
		case err := <-e.etcd.Err():
			return err
		case <-late:
			return errors.New("not serving in time")
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}

// greets reports whether the server of c answers at its address: with TLS a handshake, else a request.
func greets(c config) bool {
	addr := fmt.Sprintf("127.0.0.1:%d", c.ClientPort)
	if c.TLS == nil {
		return responds(addr)
	}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Second}, "tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err == nil {
		conn.Close()
	}
	return err == nil
}

func (e *embedded) stop(how stopping) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if how != gracefully {
			e.etcd.Server.HardStop()
		}
		e.etcd.Close()
	}()
	cut := time.After(grace)
	grpc, raft := e.grpc, e.etcd.Server.StopNotify()
	for {
		select {
		case <-gone:
			e.hangUpPeers()
			return
		case <-cut:
			// From here on nothing is worth waiting for.
			select {
			case s := <-grpc:
				s.Stop()
			default: // it never served
			}
		case <-raft:
			// etcd waits a second for its peers' streams, and leaves some of them open for five more.
			e.hangUpPeers()
			raft = nil
		}
	}
}

func (e *embedded) hangUpPeers() {
	if strings.Contains(e.cfg.Cluster, ",") {
		hangUp(e.cfg.PeerPort)
	}
}
