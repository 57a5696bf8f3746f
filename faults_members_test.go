package discov_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Members that are frozen or limp: what they are asked, and how often.

// publishSeveral registers n Publishers with ids, which share a connection.
func (s *scene) publishSeveral(n int, endpoints []string, opts ...discov.PubOption) (pubs []*instance) {
	s.t.Helper()
	for i := range n {
		pubs = append(pubs, s.publish(endpoints, fmt.Sprintf("a:%d", i), append([]discov.PubOption{discov.WithId(int64(i + 1))}, opts...)...))
	}
	return pubs
}

func TestRenewalsDoNotPileUpWhileTwoOfThreeMembersAreFrozen(t *testing.T) {
	t.Parallel()
	const (
		n      = 200
		frozen = 6 * time.Second
	)
	etcd := etcdtest.StartProcessCluster(t, 3)
	s := newScene(t, etcd)
	pubs := s.publishSeveral(n, etcd.Endpoints(), discov.WithTTL(9*time.Second))
	time.Sleep(3 * time.Second) // a beat: all are renewed
	two := []*etcdtest.Process{etcd.Leader(), etcd.Followers()[0]}
	third := etcd.Followers()[1]
	before := requestsOf(two)["LeaseKeepAlive.msg"]
	for _, member := range two {
		member.Freeze()
	}
	s.begin("frozen")
	time.Sleep(frozen)
	before += third.Requests()["LeaseKeepAlive.msg"]
	for _, member := range two {
		member.Thaw()
	}
	thawed := s.begin("thawed")
	time.Sleep(time.Second - time.Since(thawed))
	received := requestsOf(etcd.Members)["LeaseKeepAlive.msg"] - before
	t.Logf("FIGURE | %s | renewals in the first second | %d", t.Name(), received)
	// One was under way for each lease, a beat may fall into this second, and what a stream that was stuck left was asked for
	// once more.
	assert.LessOrEqual(t, received, 2*n+n/2, "renewals have piled up")
	waitForQuorum(t, etcd)
	s.figure("a quorum again", s.requireTrue(s.begin("a quorum again"), 2*atOnce, pubs...))
}

// TestAFollowerThatLimpsIsNotReadAndWatchedInTurns: its answers name an older revision than those of the others, which is no
// reason to think that etcd was wiped.
func TestAFollowerThatLimpsIsNotReadAndWatchedInTurns(t *testing.T) {
	t.Parallel()
	const (
		n     = 20
		while = 15 * time.Second
	)
	for name, c := range map[string]struct{ alone, own bool }{
		"among three endpoints":                     {},
		"among three endpoints, on own connections": {own: true}, // some watch at the one that limps, and write at others
		"as the only endpoint":                      {alone: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := etcdtest.StartProcessCluster(t, 3)
			s := newScene(t, etcd)
			follower := etcd.Followers()[0]
			endWriting := writing(t, etcd)
			endLimp := follower.Limp(40*time.Millisecond, 15*time.Millisecond)
			endpoints := etcd.Endpoints()
			if c.alone {
				endpoints = follower.Endpoints()
			}
			before := requestsOf(etcd.Members)
			var pubs []*instance
			connections := 1
			if c.own {
				connections = n
				for i := range n {
					pubs = append(pubs, s.publish(endpoints, "a:1", discov.WithId(int64(i+1)), dialling()))
				}
			} else {
				pubs = s.publishSeveral(n, endpoints)
			}
			etcdtest.RequireSoon(t, 10*time.Second, func() bool { return requestsOf(etcd.Members)["Watch.create"] >= n }, "all are watched")
			time.Sleep(while)
			asked := grown(before, requestsOf(etcd.Members))
			t.Logf("FIGURE | %s | asked to register %d, and in %v | %v", t.Name(), n, while, asked)
			// One look a second for a whole connection, at an older revision, and an audit.
			looks := connections * (int(while/time.Second) + 3)
			assert.LessOrEqual(t, asked["Txn"], looks, "looks")
			assert.LessOrEqual(t, asked["Range"], 2, "reads")
			assert.LessOrEqual(t, asked["Watch.create"], n+2, "watches")
			assert.Equal(t, n, asked["Put"], "writes")
			assert.LessOrEqual(t, asked["LeaseGrant"], n+2, "grants")

			// Each answer to a write tells the latest revision, so that the answers of the one that limps are older.
			before = requestsOf(etcd.Members)
			updates := 0
			for began := time.Now(); time.Since(began) < while; updates++ {
				require.NoError(t, pubs[updates%n].Update(t.Context(), fmt.Sprintf("b:%d", updates)))
				time.Sleep(200 * time.Millisecond)
			}
			asked = grown(before, requestsOf(etcd.Members))
			t.Logf("FIGURE | %s | asked for %d updates in %v | %v", t.Name(), updates, while, asked)
			// As above, and an update may be written once more, where its answer was late.
			assert.LessOrEqual(t, asked["Txn"]+asked["Put"], updates+updates/10+looks, "looks and writes")
			assert.LessOrEqual(t, asked["Range"], 2, "reads")
			assert.LessOrEqual(t, asked["Watch.create"], 2, "watches")
			s.requireNeverAbsent(pubs...)

			remove(t, etcd, pubs[0].key())
			s.figure("deleted", s.requireTrue(s.begin("deleted"), atOnce, pubs...))
			endLimp()
			endWriting()
			for _, pub := range pubs {
				require.Equal(t, discov.StatePublished, pub.Status().State)
				s.requireOneLease(pub)
			}
		})
	}
}
