package discov

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
)

// Update.

func TestUpdateChangesTheValueUnderTheSameKeyAndLease(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints())
	before := requireValue(t, srv, testFullKey, testValue)

	require.NoError(t, p.Update(context.Background(), "10.0.0.7:9090"))
	after := requireValue(t, srv, testFullKey, "10.0.0.7:9090")
	require.Equal(t, before.Lease, after.Lease)
	require.Equal(t, before.CreateRevision, after.CreateRevision, "it was never gone")
	require.Equal(t, before.Version+1, after.Version)
	require.Equal(t, "10.0.0.7:9090", p.Status().Value)
	require.Equal(t, StatePublished, p.Status().State)
	awaitLeases(t, srv, 1)
}

func TestUpdateCostsNothingButItsPut(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints())
	etcdtest.RequireSoon(t, eventually, func() bool { return srv.Watchers() == 1 })
	before := srv.Requests()
	for i := range 20 {
		require.NoError(t, p.Update(t.Context(), strconv.Itoa(i)))
	}
	after := srv.Requests()
	require.Equal(t, 20, after["Txn"]-before["Txn"])
	for _, other := range []string{"Watch", "Watch.msg", "Range", "Put", "LeaseGrant"} {
		require.Equal(t, before[other], after[other], other)
	}
}

func TestUpdateToTheSameValueWritesNothing(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints())
	for _, value := range []string{testValue, "other", "other"} {
		require.NoError(t, p.Update(context.Background(), value))
		before, requests := requireValue(t, srv, testFullKey, value), srv.Requests()
		require.NoError(t, p.Update(context.Background(), value))
		require.Equal(t, before.ModRevision, requireValue(t, srv, testFullKey, value).ModRevision)
		require.Equal(t, requests["Put"]+requests["Txn"], srv.Requests()["Put"]+srv.Requests()["Txn"])
	}
	require.EqualValues(t, 2, requireValue(t, srv, testFullKey, "other").Version)
}

func TestUpdateOutsideARegistrationIsKeptForIt(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := newTestPublisher(t, srv.Endpoints(), WithId(testID))
	ctx := context.Background()
	require.NoError(t, p.Update(ctx, "early"))
	require.Equal(t, "early", p.Status().Value)
	require.Empty(t, srv.Requests())
	require.NoError(t, p.KeepAlive())
	require.EqualValues(t, 1, requireValue(t, srv, testFullKey, "early").Version)

	p.Pause()
	require.NoError(t, p.Update(ctx, "paused"))
	requireAbsent(t, srv, testFullKey)
	require.NoError(t, p.ResumeContext(ctx))
	require.EqualValues(t, 1, requireValue(t, srv, testFullKey, "paused").Version)
}

func TestUpdateToAnEmptyValueIsRefused(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints())
	require.ErrorIs(t, p.Update(context.Background(), ""), ErrValue)
	require.Equal(t, testValue, p.Status().Value)
	requireValue(t, srv, testFullKey, testValue)
}

func TestOfConcurrentUpdatesTheLatestStays(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints())
	var calls sync.WaitGroup
	for i := range 50 {
		calls.Go(func() { assert.NoError(t, p.Update(context.Background(), fmt.Sprint("value ", i))) })
	}
	calls.Wait()
	requireValue(t, srv, testFullKey, p.Status().Value)
	require.NoError(t, p.Update(context.Background(), "last"))
	requireValue(t, srv, testFullKey, "last")
	awaitLeases(t, srv, 1)
}

// TestAnOutageThatBeginsUnderAnUpdateKeepsItsValueBack: gRPC holds such a request back for the next connection.
func TestAnOutageThatBeginsUnderAnUpdateKeepsItsValueBack(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	var once sync.Once
	stop := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if method == pb.KV_Txn_FullMethodName {
			once.Do(func() {
				srv.Stop()
				for cc.GetState() == connectivity.Ready {
					cc.WaitForStateChange(ctx, connectivity.Ready)
				}
			})
		}
		return invoke(ctx, method, req, reply, cc, opts...)
	}
	p := published(t, srv.Endpoints(), Dialling(grpc.WithChainUnaryInterceptor(stop)))
	for _, value := range []string{"first", "second"} {
		require.ErrorIs(t, p.Update(deadline(t, 300*time.Millisecond), value), context.DeadlineExceeded)
	}
	srv.Start()
	awaitValue(t, srv, testFullKey, "second")
	awaitState(t, p, StatePublished)
	require.EqualValues(t, 2, requireValue(t, srv, testFullKey, "second").Version, "the first value was written as well")
}

func TestUpdateOfTheSameValueInAnOutageStillWaitsForIt(t *testing.T) {
	t.Parallel()
	srv, path := quickPath(t)
	p := published(t, []string{path.Endpoint()})
	path.Swallow()
	require.Error(t, p.Update(deadline(t, 100*time.Millisecond), "other"))
	// An error of this one means what it means of the first: "other" is not in etcd yet.
	require.Error(t, p.Update(deadline(t, 100*time.Millisecond), "other"))
	requireValue(t, srv, testFullKey, testValue)
	path.Heal()
	require.NoError(t, p.Update(context.Background(), "other"))
	requireValue(t, srv, testFullKey, "other")
}

func TestUpdateBackToTheOldValueInAnOutageEndsWithIt(t *testing.T) {
	t.Parallel()
	srv, path := quickPath(t)
	p := published(t, []string{path.Endpoint()})
	path.Swallow()
	_ = p.Update(deadline(t, 50*time.Millisecond), "other")
	_ = p.Update(deadline(t, 50*time.Millisecond), testValue)
	path.Heal()
	require.NoError(t, p.Update(context.Background(), testValue))
	requireValue(t, srv, testFullKey, testValue)
	requireStays(t, func() { requireValue(t, srv, testFullKey, testValue) })
}

// What others do to the key.

func TestResumeTakesTheKeyOverFromAnother(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	p := published(t, srv.Endpoints())
	putByAnother(t, srv, testFullKey, "another's")
	awaitState(t, p, StateConflict)
	require.NoError(t, p.ResumeContext(context.Background()))
	requireValue(t, srv, testFullKey, testValue)

	p.Pause()
	putByAnother(t, srv, testFullKey, "another's")
	require.NoError(t, p.ResumeContext(context.Background()))
	requireValue(t, srv, testFullKey, testValue)
}

func TestOfTwoWithOneIdTheSecondTakesOverAndTheFirstsStopLeavesItsKey(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	observer := etcdtest.Observe(t, srv, testKey)
	first := published(t, srv.Endpoints())
	second := published(t, srv.Endpoints())
	awaitState(t, first, StateConflict)
	kv := requireValue(t, srv, testFullKey, testValue)
	require.Equal(t, int64(second.Status().Lease), kv.Lease)

	require.NoError(t, first.StopContext(context.Background()))
	require.Equal(t, kv, requireValue(t, srv, testFullKey, testValue))
	require.Equal(t, StatePublished, second.Status().State)
	awaitLeases(t, srv, 1)
	observer.RequireNeverAbsent(t, testFullKey)
}

func TestPauseInAConflictLeavesTheOthersKey(t *testing.T) {
	t.Parallel()
	srv := quickEtcd(t)
	first := published(t, srv.Endpoints())
	second := published(t, srv.Endpoints())
	awaitState(t, first, StateConflict)
	require.NoError(t, first.PauseContext(context.Background()))
	require.Equal(t, int64(second.Status().Lease), requireValue(t, srv, testFullKey, testValue).Lease)
	awaitLeases(t, srv, 1)
}
