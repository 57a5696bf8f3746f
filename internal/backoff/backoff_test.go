package backoff_test

import (
	"context"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/bubble"
	"github.com/stretchr/testify/require"
)

func TestPausesDoubleUpToTheMostAndNoTwoRunsAreAlike(t *testing.T) {
	t.Parallel()
	one, other := backoff.New(), backoff.New()
	want, alike := 50*time.Millisecond, 0
	for range 20 {
		d, e := one.Take(), other.Take()
		require.LessOrEqual(t, d, want)
		require.GreaterOrEqual(t, d, want*3/4)
		if d == e {
			alike++
		}
		want = min(2*want, backoff.Most)
	}
	require.Less(t, alike, 20)
	one.Reset()
	require.LessOrEqual(t, one.Take(), 50*time.Millisecond)
}

func TestAPauseEndsWithItsContext(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		require.True(t, backoff.Pause(ctx, 400*time.Millisecond))
		require.False(t, backoff.Pause(ctx, time.Hour))
		require.Equal(t, time.Second, time.Since(began))
		require.False(t, backoff.New().Wait(ctx))
	})
}
