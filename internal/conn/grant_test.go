package conn

import (
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// ids gives lease IDs, one after the other.
func ids() func() clientv3.LeaseID {
	var last clientv3.LeaseID
	return func() clientv3.LeaseID { last++; return last }
}

func TestAFirstRegistrationOverALongRoundTripAsksForOneLease(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.QuickTicks())
	path := etcdtest.NewPath(t, srv.Endpoints()[0])
	path.Latency(600 * time.Millisecond)
	first := usual
	first.Call = 0
	c := newConn(t, Target{}.To([]string{path.Endpoint()})).Caller(first)
	ctx := deadline(t, 2*eventually)
	require.NoError(t, c.Ready(ctx))
	lease, strays, err := c.Grant(ctx, testTTL, ids())
	require.NoError(t, err)
	require.Empty(t, strays)
	require.EqualValues(t, 1, lease.ID)
	require.Equal(t, 1, srv.Requests()["LeaseGrant"])
}
