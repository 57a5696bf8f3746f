//go:build slow

package discov_test

import (
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestSlowAnEtcdThatHasBecomeSlowIsDialledFourTimesAtMost(t *testing.T) {
	t.Parallel()
	p := newPace(t)
	p.change()
	p.requireDialled(4, time.Minute)
	p.requireDialled(0, 30*time.Second)
	p.requireNeverAbsent(p.pub)
	p.requireOneLease(p.pub)
}

// TestSlowAWatchThatWasDeniedIsAskedForAgain: once the key may be read, which is found out every half a minute, losses are
// told at once.
func TestSlowAWatchThatWasDeniedIsAskedForAgain(t *testing.T) {
	t.Parallel()
	const (
		user, pass = "svc", "pass"
		found      = 45 * time.Second // a look every 30 s, jittered
	)
	readWrite, write := clientv3.PermissionType(clientv3.PermReadWrite), clientv3.PermissionType(clientv3.PermWrite)
	all := clientv3.GetPrefixRangeEnd(prefix)
	for name, deny := range map[string]func(s *scene, etcd *etcdtest.Server, publish func() *instance) *instance{
		"a role that may only write at first": func(s *scene, etcd *etcdtest.Server, publish func() *instance) *instance {
			etcd.Grant(s.t, user, prefix, all, write)
			return publish()
		},
		"a permission that was taken": func(s *scene, etcd *etcdtest.Server, publish func() *instance) *instance {
			etcd.Grant(s.t, user, prefix, all, readWrite)
			pub := publish()
			etcdtest.RequireSoon(s.t, atOnce, func() bool { return etcd.Watchers() == 1 }, "watched")
			etcd.Revoke(s.t, user, prefix, all)
			etcd.Grant(s.t, user, prefix, all, write)
			// etcd ends no watch for that, so it is made to.
			etcd.Restart()
			s.requireTrue(time.Now(), 2*atOnce, pub)
			return pub
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := etcdtest.Start(t, etcdtest.WithAuth("admin", "pass"))
			etcd.AddUser(t, user, pass)
			s := newScene(t, etcd)
			pub := deny(s, etcd, func() *instance {
				return s.publish(etcd.Endpoints(), "a:1", discov.WithId(7), discov.WithPubEtcdAccount(user, pass))
			})
			time.Sleep(time.Second)
			require.Zero(t, etcd.Watchers(), "it may not watch yet")
			etcd.Grant(t, user, prefix, all, readWrite)
			s.begin("it may read and watch")
			etcdtest.RequireSoon(t, found, func() bool { return etcd.Watchers() == 1 }, "a watch:\n%s", pub)
			remove(t, etcd, pub.key())
			s.figure("deleted", s.requireTrue(s.begin("deleted"), atOnce, pub))
			s.requireOneLease(pub)
		})
	}
}
