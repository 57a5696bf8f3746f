//go:build slow

package discov_test

import (
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// onItsOwn gives a Publisher a connection of its own, as if it were in another process.
func onItsOwn() discov.PubOption { return discov.WithClientConfig(func(*clientv3.Config) {}) }

// TestSlowManyProcessesLogInAfterARestartThoughEachLoginIsSlow is the case of a hundred services with the default cost of a
// password, 60 ms, on a small etcd: all logins together take longer than one may wait.
func TestSlowManyProcessesLogInAfterARestartThoughEachLoginIsSlow(t *testing.T) {
	const n = 60
	// Under the race detector a login takes about as long as one of cost 12 without.
	etcd := etcdtest.StartProcess(t, etcdtest.WithAuth("svc", "pass"), etcdtest.WithBcryptCost(8))
	login := time.Now()
	severalRegistered(t, 1, etcd.Endpoints(), "first", discov.WithPubEtcdAccount("svc", "pass"), onItsOwn(), discov.WithTimeout(time.Minute))
	one := time.Since(login)
	var all sync.WaitGroup
	pubs := make([]*discov.Publisher, n)
	for i := range pubs {
		pubs[i] = unstarted(t, etcd.Endpoints(), "svc", discov.WithId(int64(i+1)), discov.WithPubEtcdAccount("svc", "pass"), onItsOwn(),
			discov.WithTimeout(30*time.Second))
		if i%4 == 3 {
			all.Wait() // four at a time
		}
		all.Go(func() { assert.NoError(t, start(t, pubs[i])) })
	}
	all.Wait()
	etcd.Restart()
	restarted := time.Now()
	etcdtest.RequireSoon(t, 2*time.Minute, func() bool { return etcd.Watchers() >= n }, "not all are back: %d of %d, %d Authenticate of %v each",
		etcd.Watchers(), n, etcd.Requests()["Authenticate"], one)
	authenticated := etcd.Requests()["Authenticate"]
	t.Logf("figure: %d processes are back %v after the restart, with %d Authenticate of %v", n, time.Since(restarted).Round(time.Millisecond), authenticated, one.Round(time.Millisecond))
	assert.LessOrEqual(t, authenticated, 3*n/2, "logins that were given up and made again")
}

func TestSlowALatencyOfTwoSecondsLosesNoKeyAndKeepsBounds(t *testing.T) {
	t.Parallel()
	farEtcd{each: 2 * time.Second, timeout: 20 * time.Second, ttl: defaultTTL}.requireKept(t)
}

// TestSlowAWriterWhoseKeyWasDeletedPutsItBack: nobody tells one who may neither read nor watch.
func TestSlowAWriterWhoseKeyWasDeletedPutsItBack(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.WithAuth("admin", "pass"))
	etcd.AddUser(t, "svc", "pass")
	etcd.Grant(t, "svc", "svc/", clientv3.GetPrefixRangeEnd("svc/"), clientv3.PermissionType(clientv3.PermWrite))
	registered(t, etcd.Endpoints(), "svc", discov.WithId(1), discov.WithPubEtcdAccount("svc", "pass"))
	o := etcdtest.Observe(t, etcd, "svc/")
	_, err := etcd.Client(t).Delete(t.Context(), "svc/1")
	require.NoError(t, err)
	deleted := time.Now()
	etcdtest.RequireSoon(t, 35*time.Second, func() bool { return o.Present(t, "svc/1") }, "a writer does not put its key back")
	t.Logf("figure: back after %v", time.Since(deleted).Round(time.Millisecond))
}

// TestSlowTheCallersClientMovedToAnotherClusterMovesTheKey: what is open to the old cluster may stay open.
func TestSlowTheCallersClientMovedToAnotherClusterMovesTheKey(t *testing.T) {
	t.Parallel()
	old, new := etcdtest.Start(t), etcdtest.Start(t)
	client := ownClient(t, old.Endpoints()...)
	p := registered(t, nil, "svc", discov.WithId(1), discov.WithClient(client))
	o := etcdtest.Observe(t, new, "svc/")
	client.SetEndpoints(new.Endpoints()...)
	moved := time.Now()
	etcdtest.RequireSoon(t, 35*time.Second, func() bool { return o.Present(t, "svc/1") }, "it stays where it was")
	t.Logf("figure: moved after %v", time.Since(moved).Round(time.Millisecond))
	time.Sleep(15 * time.Second)
	o.RequireNeverAbsent(t, "svc/1")
	require.NoError(t, p.StopContext(t.Context()))
}

// BenchmarkCPUOfAHundredPublishersInAnOutage tells what an outage of 20 s costs the process of the Publishers, in percent
// of a core: with an etcd that is gone, and with one that hangs.
func BenchmarkCPUOfAHundredPublishersInAnOutage(b *testing.B) {
	for name, fault := range map[string]struct{ begin, end func(*etcdtest.Process) }{
		"gone":  {(*etcdtest.Process).Kill, func(p *etcdtest.Process) { p.Start() }},
		"hangs": {(*etcdtest.Process).Freeze, (*etcdtest.Process).Thaw},
	} {
		b.Run(name, func(b *testing.B) {
			etcd := etcdtest.StartProcess(b)
			severalRegistered(b, 100, etcd.Endpoints(), "svc")
			for b.Loop() {
				fault.begin(etcd)
				time.Sleep(2 * time.Second)
				before, began := cpu(b), time.Now()
				time.Sleep(20 * time.Second)
				b.ReportMetric(100*(cpu(b)-before).Seconds()/time.Since(began).Seconds(), "%core")
				fault.end(etcd)
			}
		})
	}
}

// cpu is the time that this process, without its children, has had.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
