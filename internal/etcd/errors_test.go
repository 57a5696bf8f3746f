package etcd_test

import (
	"context"
	"testing"

	"github.com/discov-go/discov/internal/etcd"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestOnlyALimitOfSizeMeansThatAValueIsTooLarge(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]bool{
		"trying to send message larger than max (2097200 vs. 2097152)":       true,
		"grpc: received message larger than max (2097200 vs. 2097152)":       true,
		"etcdserver: too many requests":                                      false,
		"stream terminated by RST_STREAM with error code: ENHANCE_YOUR_CALM": false,
		"rate limit exceeded": false,
		"grpc: received message after decompression larger than max 4":                       false,
		"stream terminated by RST_STREAM with error code: FLOW_CONTROL_ERROR, and a message": false,
	} {
		err := etcd.Plain(status.Error(codes.ResourceExhausted, message))
		require.Equalf(t, want, etcd.IsTooLarge(err), "%q", message)
		require.Equalf(t, want, etcd.IsFinal(err), "%q", message)
	}
	require.True(t, etcd.IsTooLarge(etcd.Plain(rpctypes.ErrGRPCRequestTooLarge)))
}

func TestAnErrorIsPlainAndStillWhatItWas(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		given error
		says  string
		is    error
	}{
		{status.Error(codes.DeadlineExceeded, "context deadline exceeded"), "context deadline exceeded", context.DeadlineExceeded},
		{
			status.Error(codes.DeadlineExceeded, "latest balancer error: connection refused"),
			"context deadline exceeded: connection refused", context.DeadlineExceeded,
		},
		{status.Error(codes.Canceled, "context canceled"), "context canceled", context.Canceled},
		{status.Error(codes.Unavailable, "no way"), "Unavailable: no way", nil},
		{rpctypes.ErrGRPCLeaseNotFound, "etcdserver: requested lease not found", rpctypes.ErrLeaseNotFound},
		{etcd.ErrOutdated, "Unavailable: the value was updated before it was sent", etcd.ErrOutdated},
	} {
		err := etcd.Plain(c.given)
		require.EqualError(t, err, c.says)
		if c.is != nil {
			require.ErrorIs(t, err, c.is)
		}
	}
	require.NoError(t, etcd.Plain(nil))
	require.True(t, etcd.IsUnsent(&etcd.UnsentError{Err: context.DeadlineExceeded}))
}
