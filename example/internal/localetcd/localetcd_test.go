package localetcd

import (
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestATakenPortIsReplacedByAFreeOne(t *testing.T) {
	first, err := Start(t.Context(), "")
	require.NoError(t, err)
	second, err := Start(t.Context(), first.Endpoint)
	require.NoError(t, err)
	require.NotEqual(t, first.Endpoint, second.Endpoint)

	client, err := clientv3.New(clientv3.Config{Endpoints: []string{second.Endpoint}})
	require.NoError(t, err)
	_, err = client.Put(t.Context(), "key", "value")
	require.NoError(t, err)
	require.NoError(t, client.Close())

	require.NoError(t, first.Close())
	require.NoError(t, second.Close())
	require.NoDirExists(t, first.Dir)
	require.NoDirExists(t, second.Dir)
}
