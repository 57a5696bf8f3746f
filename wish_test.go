package discov

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAWishIsALevelWhoseLatchIsSetWhenItIsAnother(t *testing.T) {
	w := newWish("v0")
	published, untilPaused := w.now()
	require.Equal(t, wantPublished, published)
	require.False(t, untilPaused.isSet())

	w.setPaused()
	require.True(t, untilPaused.isSet())
	paused, untilResumed := w.now()
	require.Equal(t, wantWithheld, paused)
	require.False(t, untilResumed.isSet())
	require.False(t, w.takeover)

	w.clearPaused()
	require.True(t, untilResumed.isSet())
	published, untilStopped := w.now()
	require.Equal(t, wantPublished, published)
	require.True(t, w.takeover, "a Resume is somebody's decision")

	w.setStopped()
	require.True(t, untilStopped.isSet())
	stopped, never := w.now()
	require.Equal(t, wantStopped, stopped)
	require.Equal(t, w.stop.Context, never.Context)
	require.False(t, w.isPaused(), "nobody waits for a Resume any more")
}

func TestAnEqualValueIsNoNews(t *testing.T) {
	w := newWish("v0")
	w.setValue("v0")
	require.False(t, w.isNew)
	require.Zero(t, w.updates)
	w.setValue("v1")
	require.True(t, w.isNew)
	w.clearNews()
	require.False(t, w.isNew)
	require.EqualValues(t, 1, w.updates)
}
