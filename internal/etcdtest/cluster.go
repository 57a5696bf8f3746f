package etcdtest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A Group is a cluster of members of one kind.
type Group[M node] struct {
	*access
	Members []M

	as func(*member) M
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
	g := &Group[M]{as: as}
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

// Replace takes a member out of the cluster for good, and adds a new one with an address and data of its own, which takes
// its place in Members and is returned. The old one runs on until then, as one who has not been told to go. etcd wants all
// to have been well for 5 s before either step, so it takes as long. Endpoints and Client stay with the addresses of the
// start, so one of those members must stay.
func (g *Group[M]) Replace(old M) M {
	g.t.Helper()
	was := old.base()
	g.reconfigure("remove "+was.cfg.Name, func(ctx context.Context, c *clientv3.Client) error {
		members, err := c.MemberList(ctx)
		if err != nil {
			return err
		}
		for _, m := range members.Members {
			if m.Name == was.cfg.Name {
				_, err = c.MemberRemove(ctx, m.ID)
			}
		}
		return err
	})
	defer was.Stop()

	next := was.successor()
	g.reconfigure("add "+next.cfg.Name, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.MemberAdd(ctx, []string{next.cfg.peerURL()})
		if errors.Is(err, rpctypes.ErrPeerURLExist) {
			return nil // by the try before
		}
		return err
	})
	i := slices.IndexFunc(g.Members, func(m M) bool { return m.base() == was })
	g.Members[i] = g.as(next)
	g.introduce()
	next.Start()
	return g.Members[i]
}

// reconfigure tries until etcd finds its members well enough.
func (g *Group[M]) reconfigure(what string, change func(context.Context, *clientv3.Client) error) {
	g.t.Helper()
	var err error
	try := func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		defer cancel()
		err = change(ctx, g.Client(g.t))
		return err == nil
	}
	for deadline := time.Now().Add(startTimeout); !try(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			g.t.Fatalf("etcdtest: %s: %v", what, err)
		}
	}
}

// introduce tells every member of all, for its next start on no data.
func (g *Group[M]) introduce() {
	var all []string
	for _, m := range g.Members {
		all = append(all, m.base().cfg.peer())
	}
	for _, m := range g.Members {
		m.base().cfg.Cluster = strings.Join(all, ",")
	}
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
