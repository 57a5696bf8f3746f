package discov_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The tests in this file run against any etcd: the program that ETCD_BINARY names, or else this one. make test-servers runs
// them against etcds of all ages.

// oneEtcd is an etcd of any age.
type oneEtcd interface {
	faultyEtcd
	Restart()
	Wipe()
	Grant(t testing.TB, user, key, rangeEnd string, perm clientv3.PermissionType)
	Revoke(t testing.TB, user, key, rangeEnd string)
}

// anyEtcd returns an etcd and its endpoints. Nothing is left in it at the end.
func anyEtcd(t *testing.T, opts ...etcdtest.Option) (etcd oneEtcd, endpoints []string) {
	t.Helper()
	opts = append([]etcdtest.Option{etcdtest.QuickTicks()}, opts...)
	if program := os.Getenv("ETCD_BINARY"); program != "" {
		etcd = etcdtest.StartBinary(t, program, opts...)
	} else {
		etcd = etcdtest.Start(t, opts...)
	}
	t.Cleanup(func() { require.Empty(t, keysUnder(t, etcd.Client(t), key), "left behind") })
	return etcd, etcd.Endpoints()
}

const key = "user.rpc"

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
func anyPublisher(t *testing.T, endpoints []string, value string, opts ...discov.PubOption) *discov.Publisher {
	t.Helper()
	p := discov.NewPublisher(endpoints, key, value, opts...)
	t.Cleanup(p.Stop)
	require.NoError(t, p.KeepAlive())
	return p
}

func TestAnyEtcdHoldsTheKeyUntilStop(t *testing.T) {
	t.Parallel()
	etcd, endpoints := anyEtcd(t)
	client := etcd.Client(t)
	p := anyPublisher(t, endpoints, "v1")
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
	etcd, endpoints := anyEtcd(t)
	client := etcd.Client(t)
	p := anyPublisher(t, endpoints, "v", discov.WithTTL(2*time.Second))
	lease, until := p.Status().Lease, p.Status().Until
	etcdtest.RequireSoon(t, 20*time.Second, func() bool { return p.Status().Until.After(until.Add(2 * p.Status().TTL)) }, "renewals")
	require.Equal(t, lease, p.Status().Lease)
	require.Equal(t, 1, p.Stats().Registrations)
	require.Len(t, keysUnder(t, client, key), 1)
}

func TestAnyEtcdGetsADeletedKeyBack(t *testing.T) {
	t.Parallel()
	etcd, endpoints := anyEtcd(t)
	client := etcd.Client(t)
	p := anyPublisher(t, endpoints, "v", discov.WithId(1))
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
	etcd, endpoints := anyEtcd(t)
	client := etcd.Client(t)
	first := anyPublisher(t, endpoints, "first", discov.WithId(1))
	second := anyPublisher(t, endpoints, "second", discov.WithId(1))
	etcdtest.RequireSoon(t, 5*time.Second, func() bool { return first.Status().State == discov.StateConflict }, "the first steps back")
	require.NoError(t, first.StopContext(t.Context()))
	require.Equal(t, map[string]string{key + "/1": "second"}, keysUnder(t, client, key))
	require.NoError(t, second.StopContext(t.Context()))
}

func TestAnyEtcdLosesNoKeyBehindAConnectionThatGoesDeaf(t *testing.T) {
	t.Parallel()
	etcd, endpoints := anyEtcd(t)
	client := etcd.Client(t)
	path := etcdtest.NewPath(t, endpoints[0])
	p := anyPublisher(t, []string{path.Endpoint()}, "v", discov.WithId(1), discov.WithTTL(6*time.Second))
	lease := p.Status().Lease
	path.DeafenCurrent()
	deaf := time.Now()
	etcdtest.RequireSoon(t, 20*time.Second, func() bool { return p.Status().Until.After(deaf.Add(12 * time.Second)) }, "renewals")
	require.Equal(t, lease, p.Status().Lease)
	require.Len(t, keysUnder(t, client, key), 1)
	p.Stop()
}

// isBack waits until the key has this value again.
func isBack(t *testing.T, etcd oneEtcd, fullKey, value string) {
	t.Helper()
	etcdtest.RequireSoon(t, 20*time.Second, func() bool { return keysUnder(t, etcd.Client(t), key)[fullKey] == value }, "the key is there")
}

func TestAnyEtcdIsRestartedAndWiped(t *testing.T) {
	t.Parallel()
	etcd, endpoints := anyEtcd(t)
	p := anyPublisher(t, endpoints, "v", discov.WithId(1))
	etcd.Restart()
	isBack(t, etcd, key+"/1", "v")
	etcd.Wipe()
	isBack(t, etcd, key+"/1", "v")
	require.NoError(t, p.StopContext(t.Context()))
}

func TestAnyEtcdWithTLSAndAnAccount(t *testing.T) {
	t.Parallel()
	ca := etcdtest.NewCA(t)
	etcd, endpoints := anyEtcd(t, etcdtest.WithServerTLS(ca.Issue(t)), etcdtest.WithAuth("u", "p"))
	cert := ca.Issue(t)
	p := anyPublisher(t, endpoints, "v", discov.WithId(1), discov.WithPubEtcdAccount("u", "p"),
		discov.WithPubEtcdTLS(cert.CertFile, cert.KeyFile, cert.CAFile, false), discov.WithTTL(2*time.Second))
	until := p.Status().Until
	etcdtest.RequireSoon(t, 20*time.Second, func() bool { return p.Status().Until.After(until.Add(2 * p.Status().TTL)) }, "renewals")
	_, err := etcd.Client(t).Delete(t.Context(), key+"/1")
	require.NoError(t, err)
	isBack(t, etcd, key+"/1", "v")
	require.NoError(t, p.StopContext(t.Context()))
}

// After a restart or a wipe, once a key was written, etcd 3.4.23 takes no token from any client any more, raw clientv3 included:
// make test-servers spares it this.
func TestAnyEtcdForgetsItsTokens(t *testing.T) {
	t.Parallel()
	etcd, endpoints := anyEtcd(t, etcdtest.WithAuth("u", "p"))
	p := anyPublisher(t, endpoints, "v", discov.WithId(1), discov.WithPubEtcdAccount("u", "p"))
	etcd.Restart()
	_, err := etcd.Client(t).Delete(t.Context(), key+"/1")
	require.NoError(t, err)
	isBack(t, etcd, key+"/1", "v")
	etcd.Wipe()
	isBack(t, etcd, key+"/1", "v")
	require.NoError(t, p.StopContext(t.Context()))
}

// TestAnyEtcdTellsItsRevisionWithoutAToken: what finds out that a token is from before etcd was wiped or restored.
func TestAnyEtcdTellsItsRevisionWithoutAToken(t *testing.T) {
	t.Parallel()
	etcd, endpoints := anyEtcd(t, etcdtest.WithAuth("u", "p"))
	put, err := etcd.Client(t).Put(t.Context(), "other", "v")
	require.NoError(t, err)
	nobody, err := clientv3.New(clientv3.Config{Endpoints: endpoints})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, nobody.Close()) })
	answer, err := nobody.Txn(t.Context()).Then(clientv3.OpTxn(nil, nil, nil)).Commit()
	require.NoError(t, err)
	require.Equal(t, put.Header.Revision, answer.Header.Revision)
}

func TestAnyEtcdTakesAPermissionAndGivesItBack(t *testing.T) {
	t.Parallel()
	etcd, endpoints := anyEtcd(t, etcdtest.WithAuth("u", "p"))
	p := anyPublisher(t, endpoints, "v", discov.WithId(1), discov.WithPubEtcdAccount("u", "p"), discov.WithTTL(2*time.Second))
	etcd.Revoke(t, "u", "\x00", "\x00") // of all keys
	_, err := etcd.Client(t).Delete(t.Context(), key+"/1")
	require.NoError(t, err)
	etcdtest.RequireSoon(t, 20*time.Second, func() bool {
		return errors.Is(p.Status().Err, rpctypes.ErrPermissionDenied)
	}, "it is told")
	time.Sleep(p.Status().TTL) // renewals, too, are denied by some
	etcd.Grant(t, "u", "\x00", "\x00", clientv3.PermissionType(clientv3.PermReadWrite))
	isBack(t, etcd, key+"/1", "v")
	require.NoError(t, p.StopContext(t.Context()))
}
