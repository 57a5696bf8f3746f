package discov_test

import (
	"net"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Paths that swallow, lose, close or delay what they carry.

func TestAPathThatClosesWhatItAcceptsHasTheKeyBackAtOnce(t *testing.T) {
	t.Parallel()
	s := onPath(t)
	pub := s.publish("a:1", withID(shortTTL)...)
	s.path.Refuse()
	s.path.Reset()
	accepted := closeAtOnce(t, s.path.Endpoint(), 2*shortTTL)
	s.path.Accept()
	s.figure("closed at once", s.requireTrue(s.begin("mended"), atOnce, pub))
	t.Logf("%d connections in %v", accepted, 2*shortTTL)
	require.LessOrEqual(t, accepted, int(2*shortTTL/(100*time.Millisecond)), "polite")
}

// closeAtOnce accepts connections at the address for d, and closes each. It returns how many.
func closeAtOnce(t *testing.T, address string, d time.Duration) (accepted int) {
	t.Helper()
	listener, err := net.Listen("tcp4", address)
	require.NoError(t, err)
	closed := make(chan struct{})
	time.AfterFunc(d, func() {
		listener.Close()
		close(closed)
	})
	for {
		conn, err := listener.Accept()
		if err != nil {
			<-closed // the address is free
			return accepted
		}
		accepted++
		conn.Close()
	}
}

func TestAConnectionThatGoesDeafWithNothingUnderWayIsNoticedByAWithdrawal(t *testing.T) {
	t.Parallel()
	s := onPath(t)
	pub := s.publish("a:1", withID(10*time.Second)...)
	s.path.DeafenCurrent()
	require.NoError(t, pub.pauseIn(5*time.Second))
	s.requireGone(time.Now(), 0)
	s.path.DeafenCurrent()
	require.NoError(t, pub.resumeIn(5*time.Second))
	s.requireTrue(time.Now(), 0, pub)
	s.path.DeafenCurrent()
	require.NoError(t, pub.updateIn(5*time.Second, "a:2"))
	s.requireTrue(time.Now(), 0, pub)
	s.path.DeafenCurrent()
	require.NoError(t, pub.stopIn(5*time.Second))
	s.requireGone(time.Now(), 0)
}

func TestResetsEveryQuarterSecondNeverCostAKey(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ttl    time.Duration
		secure bool
	}{
		"the default TTL":                      {ttl: defaultTTL},
		"the least TTL":                        {ttl: 2 * time.Second},
		"the least TTL with TLS and account":   {ttl: 2 * time.Second, secure: true},
		"the default TTL with TLS and account": {ttl: defaultTTL, secure: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := guarded(t, onPath, c.secure, c.secure)
			pubs := s.publishSeveral(5, discov.WithTTL(c.ttl))
			before, most := s.server.Requests(), 0
			for range 40 {
				s.path.Reset()
				most = max(most, s.mostLeases(250*time.Millisecond))
			}
			asked := grown(before, s.server.Requests())
			s.requireNeverAbsent(pubs...)
			for _, pub := range pubs {
				require.NoError(t, pub.updateIn(defaultTimeout, "new"))
			}
			t.Logf("figure: %d leases at most; in 10 s asked %v", most, asked)
			assert.Equal(t, len(pubs), most, "leases while resetting")
			assert.Zero(t, asked["Put"]+asked["Txn"], "writes of keys that were right")
			s.requireTrue(time.Now(), 0, pubs...)
		})
	}
}
