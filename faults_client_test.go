package discov_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// The caller's own client.

func ownClient(t testing.TB, endpoints ...string) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	return client
}

func TestTheCallersClientClosedUnderUsIsNamedAndBoundedAndLeavesNoGoroutine(t *testing.T) {
	t.Parallel()
	const bound = time.Second
	s := onServer(t)
	s.etcd.LeaseIDs(t) // opens the test's own client
	client := ownClient(t, s.endpoints...)
	s.endpoints = nil
	s.opts = []discov.PubOption{discov.WithClient(client), discov.WithTTL(2 * time.Second), discov.WithTimeout(bound)}
	pubs := s.publishSeveral(4)
	unbegun := s.newInstance("a:7", discov.WithId(7))
	paused := s.publish("a:8", discov.WithId(8))
	paused.Pause()
	var updates sync.WaitGroup // one call is in the middle of things
	for i := range 50 {
		updates.Go(func() { _ = pubs[0].Update(t.Context(), fmt.Sprint(i)) })
	}
	require.NoError(t, client.Close())
	closed := s.begin("closed")
	updates.Wait()
	const named = "WithClient was closed"
	etcdtest.RequireSoon(t, 2*time.Second, func() bool {
		return !slices.ContainsFunc(pubs, func(pub *instance) bool {
			err := pub.Status().Err
			return err == nil || !strings.Contains(err.Error(), named)
		})
	}, "not all know why")
	s.figure("named", time.Since(closed))
	require.ErrorContains(t, pubs[1].updateIn(bound, "new"), named)
	require.ErrorContains(t, pubs[2].pauseIn(bound), named)
	require.ErrorContains(t, pubs[2].resumeIn(bound), named)
	require.ErrorContains(t, s.bounded(bound, unbegun.start), named)
	require.ErrorContains(t, paused.resumeIn(bound), named)
	for _, pub := range pubs {
		require.ErrorContains(t, pub.stopIn(bound), named)
	}
	require.NoError(t, paused.stopIn(bound), "it has nothing to withdraw")
	etcdtest.RequireSoon(t, 4*time.Second, func() bool { return len(s.Keys(t)) == 0 }, "keys outlive their leases")
	s.figure("all gone", time.Since(closed))
	for _, pub := range s.instances {
		pub.Stop() // waits for the end, a TTL at most
		etcdtest.RequireSoon(t, 3*time.Second, func() bool { return pub.Status().State == discov.StateStopped }, "%s", pub)
	}
}

func TestTheCallersClientMovedToAnotherEndpointCostsNoKey(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t)
	old, new := etcdtest.NewPath(t, etcd.Endpoints()[0]), etcdtest.NewPath(t, etcd.Endpoints()[0])
	client := ownClient(t, old.Endpoint())
	s := newScene(t, etcd)
	s.endpoints, s.opts = nil, []discov.PubOption{discov.WithClient(client)}
	pubs := s.publishSeveral(3, discov.WithTTL(3*time.Second))
	for _, way := range []struct{ from, to *etcdtest.Path }{{old, new}, {new, old}} {
		way.to.Accept()
		client.SetEndpoints(way.to.Endpoint())
		time.Sleep(time.Second)
		way.from.Refuse()
		way.from.Reset()
		time.Sleep(4 * time.Second)
		require.NoError(t, pubs[0].updateIn(defaultTimeout, way.to.Endpoint()))
		require.Zero(t, way.from.Connections())
	}
	s.requireNeverAbsent(pubs...)
	s.requireTrue(time.Now(), 0, pubs...)
}
