package discov_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Access: tokens that expire, passwords, permissions and certificates that change, and what is told.

// expireTokens waits for longer than a token of 2 s lives: etcd looks for those that have expired once a second.
func expireTokens() { time.Sleep(3200 * time.Millisecond) }

func TestTwentyPausesWithAnExpiringTokenLeaveOneKeyOneLeaseOneWatcher(t *testing.T) {
	t.Parallel()
	s := guarded(t, onServer, false, true, etcdtest.WithTokenTTL(2*time.Second))
	pub := s.publish("a:1")
	before := s.server.Requests()["Authenticate"]
	for round := range 20 {
		switch round % 4 {
		case 0:
			expireTokens()
		case 2:
			pub.Pause()
			expireTokens()
		}
		require.NoError(t, pub.PauseContext(t.Context()), "round %d", round)
		s.requireGone(time.Now(), 0)
		require.NoError(t, pub.ResumeContext(t.Context()), "round %d", round)
		s.requireTrue(time.Now(), 0, pub)
		etcdtest.RequireSoon(t, time.Second, func() bool {
			return s.server.Watchers() == 1 && s.server.OpenStreams("Watch") == 1 && s.server.OpenStreams("LeaseKeepAlive") <= 1
		}, "round %d: not one watcher", round)
	}
	authenticated := s.server.Requests()["Authenticate"] - before
	t.Logf("figure: %d Authenticate in 20 rounds, 10 of them after the token has expired", authenticated)
	assert.LessOrEqual(t, authenticated, 25)
	assert.GreaterOrEqual(t, authenticated, 3, "no token has expired: the test proves nothing")
	s.remove(pub)
	s.requireBack("the watcher is one that works")
}

func TestAuthEnabledAndDisabledOnARunningClusterCostsNoKey(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.WithAuth("svc", "pass"))
	etcd.AuthDisable(t)
	s := newScene(t, etcd)
	with := s.publish("a:1", discov.WithId(1), discov.WithTTL(2*time.Second), withAccount)
	s.publish("a:2", discov.WithId(2), discov.WithTTL(2*time.Second))
	for round := range 2 {
		etcd.AuthEnable(t)
		most := s.mostLeases(5 * time.Second)
		t.Logf("figure: round %d: %d leases at most while auth was on", round, most)
		assert.LessOrEqual(t, most, 3)
		require.NoError(t, with.updateIn(defaultTimeout, fmt.Sprint("on", round)))
		etcd.AuthDisable(t)
		s.requireBack("the one without an account")
		time.Sleep(3 * time.Second)
		require.NoError(t, with.updateIn(defaultTimeout, fmt.Sprint("off", round)))
		s.requireNeverAbsent(with)
		s.requireTrue(time.Now(), 0, s.instances...)
	}
}

// TestAWipedOrRestoredEtcdHasTheKeyOfAnAccountBackAtOnce: etcd lets each call with a token from before wait until its own
// history is as long again.
func TestAWipedOrRestoredEtcdHasTheKeyOfAnAccountBackAtOnce(t *testing.T) {
	t.Parallel()
	s := guarded(t, onServer, false, true)
	s.server.Snapshot()
	pub := s.publish("a:1", discov.WithId(1))
	for how, lose := range map[string]func(){"wiped": s.server.Wipe, "restored": s.server.Restore} {
		s.raiseRevision(200)
		s.server.Restart() // which forgets all tokens
		require.NoError(t, pub.Update(t.Context(), how))
		before := s.server.Requests()["Authenticate"]
		lose()
		s.requireBack("%s", how)
		assert.LessOrEqual(t, s.server.Requests()["Authenticate"]-before, 3)
	}
}

// TestATokenFromAFutureThatIsGoneIsNotUsedOnceAuthIsOn: etcd is restored to a time before auth was on, and it is turned on
// again. etcd would let each call with the old token wait.
func TestATokenFromAFutureThatIsGoneIsNotUsedOnceAuthIsOn(t *testing.T) {
	t.Parallel()
	s := guarded(t, onServer, false, true)
	s.server.AuthDisable(t)
	s.server.Snapshot()
	s.server.AuthEnable(t)
	s.raiseRevision(100)
	pub := s.publish("a:1", discov.WithId(1))
	s.server.Restore()
	s.requireBack("restored")
	s.server.AuthEnable(t)
	require.NoError(t, pub.updateIn(time.Second, "new"))
	require.NoError(t, pub.pauseIn(time.Second))
}

func TestAPasswordChangedAndChangedBackBringsTheKeyBackAtOnce(t *testing.T) {
	t.Parallel()
	s := guarded(t, onServer, false, true)
	s.publishSeveral(3, discov.WithTTL(2*time.Second))
	var long []*instance
	for id := range int64(3) {
		long = append(long, s.publish("a:1", discov.WithId(id+10), discov.WithTTL(20*time.Second)))
	}
	before := s.server.Requests()["Authenticate"]
	s.server.SetPassword(t, "svc", "another")
	most := s.mostLeases(10 * time.Second)
	authenticated := s.server.Requests()["Authenticate"] - before
	s.server.SetPassword(t, "svc", "pass")
	s.requireKeysBack(s.begin("changed back"), s.instances...)
	time.Sleep(2 * time.Second)
	s.requireNeverAbsent(long...)
	t.Logf("figure: %d leases at most, %d Authenticate in 10 s of a wrong password", most, authenticated)
	assert.LessOrEqual(t, most, 12)
	assert.LessOrEqual(t, authenticated, 30)
	s.requireTrue(time.Now(), 0, s.instances...)
}

const (
	readWrite = clientv3.PermissionType(clientv3.PermReadWrite)
	write     = clientv3.PermissionType(clientv3.PermWrite)
)

// withUser plays on an etcd with a user of little permission, and returns what gives one for keys up to an end.
func withUser(t *testing.T) (s *scene, grant func(key, end string, kind clientv3.PermissionType)) {
	t.Helper()
	s = onServer(t, etcdtest.WithAuth("admin", "pass"))
	s.server.AddUser(t, "svc", "pass")
	s.opts = []discov.PubOption{withAccount}
	return s, func(key, end string, kind clientv3.PermissionType) { s.server.Grant(t, "svc", key, end, kind) }
}

func TestAPermissionTakenAndGivenBackCostsNoNeighbourItsKey(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second
	for name, taken := range map[string]time.Duration{
		"for less than the TTL": time.Second,
		"for twice the TTL":     2 * ttl,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, grant := withUser(t)
			grant(prefix, "", readWrite)
			grant(prefix+"/", clientv3.GetPrefixRangeEnd(prefix+"/"), readWrite)
			victim := s.publish("a:1", discov.WithTTL(ttl), discov.WithExactKey())
			neighbours := s.publishSeveral(5, discov.WithTTL(ttl))
			before := s.server.Requests()
			s.server.Revoke(t, "svc", prefix, "")
			most := s.mostLeases(taken)
			asked := grown(before, s.server.Requests())
			status := victim.Status()
			require.NoError(t, neighbours[0].updateIn(defaultTimeout, "new"))
			grant(prefix, "", readWrite)
			s.requireKeysBack(s.begin("given back"), victim)
			if taken < ttl-time.Second {
				s.requireNeverAbsent(victim)
			} else {
				require.ErrorIs(t, status.Err, rpctypes.ErrPermissionDenied)
			}
			t.Logf("figure: %d leases at most of %d; in %v without permission %v", most, len(s.instances), taken, asked)
			assert.LessOrEqual(t, most, len(s.instances)+1)
			time.Sleep(ttl)
			s.requireNeverAbsent(neighbours...)
			s.requireTrue(time.Now(), 0, s.instances...)
			require.NoError(t, victim.pauseIn(defaultTimeout))
			require.False(t, s.Present(t, prefix))
		})
	}
}

func TestAPublisherWithoutPermissionIsWithdrawnWithinItsTTL(t *testing.T) {
	t.Parallel()
	s, grant := withUser(t)
	grant(prefix, "", readWrite)
	pub := s.publish("a:1", discov.WithExactKey(), discov.WithTTL(3*time.Second))
	s.server.Revoke(t, "svc", prefix, "")
	asked := s.begin("Stop without permission")
	err := pub.stopIn(defaultTimeout)
	s.figure(fmt.Sprint("gone after ", err), s.requireGone(asked, 3*time.Second+expiryLag))
	grant(prefix, "", readWrite)
	time.Sleep(time.Second)
	s.requireGone(time.Now(), 0)
}

func TestAUserDeletedAndCreatedAgainBringsTheKeyBackAtOnce(t *testing.T) {
	t.Parallel()
	s, grant := withUser(t)
	grant(prefix, clientv3.GetPrefixRangeEnd(prefix), readWrite)
	s.publishSeveral(3, discov.WithTTL(2*time.Second))
	s.server.DeleteUser(t, "svc")
	most := s.mostLeases(5 * time.Second)
	_, err := s.server.Client(t).UserAdd(t.Context(), "svc", "pass")
	require.NoError(t, err)
	_, err = s.server.Client(t).UserGrantRole(t.Context(), "svc", "svc")
	require.NoError(t, err)
	s.requireKeysBack(s.begin("created"), s.instances...)
	t.Logf("figure: %d leases at most of 3", most)
	assert.LessOrEqual(t, most, 6)
	s.requireTrue(time.Now(), 3*time.Second, s.instances...)
}

func TestAUserWhoMayOnlyWriteIsRegisteredAndKept(t *testing.T) {
	t.Parallel()
	const ttl = 5 * time.Second
	s, grant := withUser(t)
	grant(prefix, clientv3.GetPrefixRangeEnd(prefix), write)
	pub := s.publish("a:1", discov.WithId(1), discov.WithTTL(ttl))
	before := s.server.Requests()
	time.Sleep(6 * time.Second)
	asked := grown(before, s.server.Requests())
	t.Logf("figure: in 6 s %v", asked)
	assert.LessOrEqual(t, asked["Watch.create"], 2, "a watch that is denied is asked for again and again")
	require.Len(t, s.History(pub.key()), 1, "no doubt, no write")
	require.Equal(t, 1, pub.Stats().Registrations)
	require.NoError(t, pub.updateIn(defaultTimeout, "new"))
	s.requireTrue(time.Now(), 0, pub)
	s.server.Restart()
	s.requireBack("restarted")
	s.requireNeverAbsent(pub)
	s.revoke(pub.Status().Lease)
	s.requireTrue(s.begin("revoked"), ttl/3+atOnce, pub) // nobody tells a writer; the next renewal does
	require.NoError(t, pub.pauseIn(defaultTimeout))
	s.requireGone(time.Now(), 0)
	require.NoError(t, pub.resumeIn(defaultTimeout))
	s.requireTrue(time.Now(), 0, pub)
	require.NoError(t, pub.stopIn(defaultTimeout))
	s.requireGone(time.Now(), 0)
}

// onTLS plays on an etcd whose certificate, and that of its Publishers, the test may change on disk.
func onTLS(t *testing.T) (s *scene, ca *etcdtest.CA, server, client etcdtest.Cert) {
	t.Helper()
	ca = etcdtest.NewCA(t)
	server, client = ca.Issue(t), ca.Issue(t)
	s = onServer(t, etcdtest.WithServerTLS(server))
	s.opts = []discov.PubOption{filesOf(client)}
	return s, ca, server, client
}

func TestCertificatesRotatedOnDiskAreUsedFromTheNextConnectionOn(t *testing.T) {
	t.Parallel()
	for name, together := range map[string]bool{"all at once": true, "the client's after the server's": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, ca, server, client := onTLS(t)
			pubs := s.publishSeveral(3)
			s.server.Stop()
			ca.Replace(t)
			ca.Renew(t, server)
			if together {
				ca.Renew(t, client)
			}
			s.server.Start()
			if !together {
				time.Sleep(2 * time.Second)
				ca.Renew(t, client)
			}
			good := s.begin("the files are right")
			etcdtest.RequireSoon(t, atOnce, func() bool { return s.server.Watchers() == 3 }, "they don't watch")
			s.figure("watching", time.Since(good))
			time.Sleep(2 * time.Second)
			s.requireNeverAbsent(pubs...)
			s.requireTrue(time.Now(), 0, pubs...)
		})
	}
}

func TestAnExpiredCertificateReplacedOnDiskBringsTheKeyBackAtOnceAndIsNamed(t *testing.T) {
	t.Parallel()
	s, ca, server, _ := onTLS(t)
	pub := s.publish("a:1", discov.WithId(1), discov.WithTTL(2*time.Second))
	ca.Renew(t, server, etcdtest.Expired())
	s.server.Restart()
	time.Sleep(6 * time.Second)
	require.False(t, s.Present(t, pub.key()))
	require.ErrorContains(t, pub.Status().Err, "expired")
	ca.Renew(t, server) // etcd reads it at each handshake
	s.requireBack("replaced")
}

func TestACertificateOfACAThatEtcdDoesNotTrustIsNamed(t *testing.T) {
	t.Parallel()
	ca, foreign := etcdtest.NewCA(t), etcdtest.NewCA(t)
	foreign.Replace(t) // with a name of its own, or Go takes it for one that the server lists
	etcd := etcdtest.Start(t, etcdtest.WithServerTLS(ca.Issue(t)), etcdtest.WithAuth("svc", "pass"))
	cert := foreign.Issue(t)
	cert.CAFile = ca.File // what it trusts itself is right
	inTLS := func(version uint16) discov.PubOption {
		pair, err := tls.LoadX509KeyPair(cert.CertFile, cert.KeyFile)
		require.NoError(t, err)
		pem, err := os.ReadFile(cert.CAFile)
		require.NoError(t, err)
		pool := x509.NewCertPool()
		require.True(t, pool.AppendCertsFromPEM(pem))
		return discov.WithTLSConfig(&tls.Config{
			MinVersion: tls.VersionTLS12, MaxVersion: version, Certificates: []tls.Certificate{pair}, RootCAs: pool,
		})
	}
	for name, opts := range map[string][]discov.PubOption{
		"TLS 1.2":                  {inTLS(tls.VersionTLS12)},
		"TLS 1.3":                  {inTLS(tls.VersionTLS13)},
		"TLS 1.2, with an account": {inTLS(tls.VersionTLS12), withAccount},
		"TLS 1.3, with an account": {inTLS(tls.VersionTLS13), withAccount},
		"files":                    {filesOf(cert)},
		"files, with an account":   {filesOf(cert), withAccount},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, etcd)
			for range 3 { // once in three tries, a write met the server's alert as a broken pipe
				pub := s.newInstance("a:1", append(opts, discov.WithTimeout(2*time.Second))...)
				err := s.bounded(2*time.Second, pub.start)
				require.Error(t, err)
				require.True(t, strings.Contains(err.Error(), "unknown certificate authority") || strings.Contains(err.Error(), "unknown authority"),
					"the cause is not named: %v", err)
				require.ErrorContains(t, pub.Status().Err, "unknown")
			}
		})
	}
}
