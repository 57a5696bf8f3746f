package etcdtest

import (
	"context"
	"sync"
	"testing"
	"time"
)

// A Group is a cluster of members of one kind.
type Group[M node] struct {
	*access
	Members []M
}

type (
	// A Cluster is a cluster in this process.
	Cluster = Group[*Server]
	// A ProcessCluster is a cluster of child processes.
	ProcessCluster = Group[*Process]
)

// StartCluster runs a cluster of n members in this process.
func StartCluster(t testing.TB, n int, opts ...Option) *Cluster {
	t.Helper()
	return startGroup(t, n, newServer, opts)
}

// StartProcessCluster runs a cluster of n child processes.
func StartProcessCluster(t testing.TB, n int, opts ...Option) *ProcessCluster {
	t.Helper()
	return startGroup(t, n, newProcess, opts)
}

func startGroup[M node](t testing.TB, n int, as func(*member) M, opts []Option) *Group[M] {
	t.Helper()
	g := &Group[M]{}
	var endpoints []string
	members := newMembers(t, n, opts)
	for _, m := range members {
		g.Members = append(g.Members, as(m))
		endpoints = append(endpoints, m.endpoints...)
	}
	g.access = newAccess(t, members[0].cfg, endpoints)
	t.Cleanup(func() { g.halt(atOnce) })
	g.Start()
	g.setUp()
	return g
}

// each calls do for every member at the same time.
func (g *Group[M]) each(do func(*member)) {
	var wg sync.WaitGroup
	for _, m := range g.Members {
		wg.Go(func() { do(m.base()) })
	}
	wg.Wait()
}

func (g *Group[M]) setUp() {
	g.t.Helper()
	c := g.Members[0].base().cfg
	if err := g.setUpAuth(c.User, c.Pass); err != nil {
		g.t.Fatalf("etcdtest: set up auth: %v", err)
	}
}

// Start starts the members that don't run, all at once.
func (g *Group[M]) Start() {
	g.t.Helper()
	// A new member asks its peers what they know of the cluster, and waits a second for those that listen but don't
	// answer yet. So none listens while another asks.
	for _, m := range g.Members {
		if err := m.base().open(); err != nil {
			g.t.Fatalf("etcdtest: %v", err)
		}
	}
	failed := make(chan error, len(g.Members))
	g.each(func(m *member) {
		if err := m.await(); err != nil {
			failed <- err
		}
	})
	select {
	case err := <-failed:
		g.t.Fatalf("etcdtest: %v", err)
	default:
	}
}

// Stop stops every member.
func (g *Group[M]) Stop() { g.halt(together) }

func (g *Group[M]) halt(how stopping) { g.each(func(m *member) { m.halt(how) }) }

// Restart is Stop and Start.
func (g *Group[M]) Restart() {
	g.t.Helper()
	g.Stop()
	g.Start()
}

// Wipe does to all members what Server.Wipe does to one.
func (g *Group[M]) Wipe() {
	g.t.Helper()
	g.Stop()
	for _, m := range g.Members {
		m.base().wipe()
	}
	g.wipes.Add(1)
	g.Start()
	g.setUp()
}

// Snapshot keeps a copy of every member's data for Restore.
func (g *Group[M]) Snapshot() {
	g.t.Helper()
	g.Stop()
	for _, m := range g.Members {
		m.base().save()
	}
	g.Start()
}

// Restore puts the data of Snapshot back.
func (g *Group[M]) Restore() {
	g.t.Helper()
	g.Stop()
	for _, m := range g.Members {
		m.base().load()
	}
	g.restores.Add(1)
	g.Start()
}

// Leader returns the member that leads, and waits for an election to end. A frozen member is not asked.
func (g *Group[M]) Leader() M {
	g.t.Helper()
	for deadline := time.Now().Add(startTimeout); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if i := g.leader(); i >= 0 {
			return g.Members[i]
		}
	}
	g.t.Fatal("etcdtest: no leader")
	panic("unreachable")
}

// Followers returns the members other than the Leader, also those that are stopped.
func (g *Group[M]) Followers() []M {
	g.t.Helper()
	leader := g.Leader().base()
	var others []M
	for _, m := range g.Members {
		if m.base() != leader {
			others = append(others, m)
		}
	}
	return others
}

// leader asks every member whether it leads. Of two that think so, the one of the later term is right.
func (g *Group[M]) leader() int {
	c := g.Client(g.t)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	var mu sync.Mutex
	leader, term := -1, uint64(0)
	var wg sync.WaitGroup
	for i, m := range g.Members {
		wg.Go(func() {
			status, err := c.Status(ctx, m.base().endpoints[0])
			if err != nil || status.Leader == 0 || status.Leader != status.Header.MemberId {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if status.RaftTerm > term {
				leader, term = i, status.RaftTerm
			}
		})
	}
	wg.Wait()
	return leader
}

// Isolate cuts a member off from its peers, in both directions, until Rejoin or its restart. Clients still reach it.
func Isolate(c *Cluster, s *Server) {
	for _, other := range c.Members {
		if other != s {
			other.in.etcd.Server.CutPeer(s.in.etcd.Server.MemberID())
			s.in.etcd.Server.CutPeer(other.in.etcd.Server.MemberID())
		}
	}
}

// Rejoin ends Isolate.
func Rejoin(c *Cluster, s *Server) {
	for _, other := range c.Members {
		if other != s {
			other.in.etcd.Server.MendPeer(s.in.etcd.Server.MemberID())
			s.in.etcd.Server.MendPeer(other.in.etcd.Server.MemberID())
		}
	}
}
