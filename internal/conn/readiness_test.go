package conn

import (
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
)

func TestTheTimeThatConnectingTakesTellsTheRoundTrip(t *testing.T) {
	t.Parallel()
	path := etcdtest.NewPath(t, etcdtest.Start(t, etcdtest.QuickTicks()).Endpoints()[0])
	path.Latency(150 * time.Millisecond)
	c := newCaller(t, path.Endpoint())
	require.NoError(t, c.Ready(deadline(t, eventually)))
	l := c.requester.links.link()
	require.GreaterOrEqual(t, l.pulse.RoundTrip(), 300*time.Millisecond)
}

func TestAnOutageIsNoRoundTrip(t *testing.T) {
	t.Parallel()
	path := etcdtest.NewPath(t, etcdtest.Start(t, etcdtest.QuickTicks()).Endpoints()[0])
	path.Refuse()
	l := newConn(t, Target{}.To([]string{path.Endpoint()})).links.link()
	require.Error(t, l.await(deadline(t, 3*time.Second)))
	path.Accept()
	require.NoError(t, l.await(deadline(t, eventually)))
	require.Less(t, l.pulse.RoundTrip(), time.Second)
}
