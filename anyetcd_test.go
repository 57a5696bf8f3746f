package discov_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The tests in this file run against any etcd: the one at ETCD_ENDPOINTS, comma-separated, or else one of their own.
// make test-etcd34 runs them against Debian's.

// anyEtcd returns the endpoints, a client, and a key of the test's own, in front of which nothing is left behind.
func anyEtcd(t *testing.T) (endpoints []string, client *clientv3.Client, key string) {
	t.Helper()
	if list := os.Getenv("ETCD_ENDPOINTS"); list != "" {
		endpoints = strings.Split(list, ",")
	} else {
		endpoints = etcdtest.Start(t, etcdtest.QuickTicks()).Endpoints()
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second})
	require.NoError(t, err)
	key = "discov.test/" + t.Name()
	t.Cleanup(func() {
		require.Empty(t, keysUnder(t, client, key), "left behind")
		require.NoError(t, client.Close())
	})
	return endpoints, client, key
}

func keysUnder(t *testing.T, client *clientv3.Client, prefix string) map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	response, err := client.Get(ctx, prefix, clientv3.WithPrefix())
	require.NoError(t, err)
	keys := map[string]string{}
	for _, kv := range response.Kvs {
		keys[string(kv.Key)] = string(kv.Value)
	}
	return keys
}

// anyPublisher returns a Publisher that is registered.
func anyPublisher(t *testing.T, endpoints []string, key, value string, opts ...discov.PubOption) *discov.Publisher {
	t.Helper()
	p := discov.NewPublisher(endpoints, key, value, opts...)
	t.Cleanup(p.Stop)
	require.NoError(t, p.KeepAlive())
	return p
}

func TestAnyEtcdHoldsTheKeyUntilStop(t *testing.T) {
	t.Parallel()
	endpoints, client, key := anyEtcd(t)
	p := anyPublisher(t, endpoints, key, "v1")
	require.Equal(t, map[string]string{p.Status().Key: "v1"}, keysUnder(t, client, key))
	require.NoError(t, p.Update(t.Context(), "v2"))
	require.Equal(t, map[string]string{p.Status().Key: "v2"}, keysUnder(t, client, key))
	require.NoError(t, p.PauseContext(t.Context()))
	require.Empty(t, keysUnder(t, client, key))
	require.NoError(t, p.ResumeContext(t.Context()))
	require.Equal(t, map[string]string{p.Status().Key: "v2"}, keysUnder(t, client, key))
	require.NoError(t, p.StopContext(t.Context()))
	require.Empty(t, keysUnder(t, client, key))
}

func TestAnyEtcdKeepsTheLeaseForLongerThanItsTTL(t *testing.T) {
	t.Parallel()
	endpoints, client, key := anyEtcd(t)
	p := anyPublisher(t, endpoints, key, "v", discov.WithTTL(2*time.Second))
	lease, until := p.Status().Lease, p.Status().Until
	etcdtest.RequireSoon(t, 20*time.Second, func() bool { return p.Status().Until.After(until.Add(2 * p.Status().TTL)) }, "renewals")
	require.Equal(t, lease, p.Status().Lease)
	require.Equal(t, 1, p.Stats().Registrations)
	require.Len(t, keysUnder(t, client, key), 1)
}

func TestAnyEtcdGetsADeletedKeyBack(t *testing.T) {
	t.Parallel()
	endpoints, client, key := anyEtcd(t)
	p := anyPublisher(t, endpoints, key, "v", discov.WithId(1))
	_, err := client.Delete(t.Context(), key+"/1")
	require.NoError(t, err)
	etcdtest.RequireSoon(t, 5*time.Second, func() bool { return len(keysUnder(t, client, key)) == 1 }, "the key")
	_, err = client.Revoke(t.Context(), p.Status().Lease)
	require.NoError(t, err)
	etcdtest.RequireSoon(t, 5*time.Second, func() bool {
		return p.Stats().Registrations == 3 && len(keysUnder(t, client, key)) == 1
	}, "the key, on a new lease")
	_, err = client.Put(t.Context(), key+"/1", "by hand")
	require.NoError(t, err)
	etcdtest.RequireSoon(t, 5*time.Second, func() bool { return keysUnder(t, client, key)[key+"/1"] == "v" }, "the value")
}

func TestAnyEtcdLeavesTheKeyToTheLastWhoStarted(t *testing.T) {
	t.Parallel()
	endpoints, client, key := anyEtcd(t)
	first := anyPublisher(t, endpoints, key, "first", discov.WithId(1))
	second := anyPublisher(t, endpoints, key, "second", discov.WithId(1))
	etcdtest.RequireSoon(t, 5*time.Second, func() bool { return first.Status().State == discov.StateConflict }, "the first steps back")
	require.NoError(t, first.StopContext(t.Context()))
	require.Equal(t, map[string]string{key + "/1": "second"}, keysUnder(t, client, key))
	require.NoError(t, second.StopContext(t.Context()))
}

func TestAnyEtcdLosesNoKeyBehindAConnectionThatGoesDeaf(t *testing.T) {
	t.Parallel()
	endpoints, client, key := anyEtcd(t)
	path := etcdtest.NewPath(t, strings.TrimPrefix(endpoints[0], "http://"))
	p := anyPublisher(t, []string{path.Endpoint()}, key, "v", discov.WithId(1), discov.WithTTL(4*time.Second))
	lease := p.Status().Lease
	path.DeafenCurrent()
	deaf := time.Now()
	etcdtest.RequireSoon(t, 20*time.Second, func() bool { return p.Status().Until.After(deaf.Add(8 * time.Second)) }, "renewals")
	require.Equal(t, lease, p.Status().Lease)
	require.Len(t, keysUnder(t, client, key), 1)
	p.Stop()
}
