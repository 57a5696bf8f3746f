package discovhttp

import (
	"errors"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/stretchr/testify/require"
)

func TestASpanIsAsWideAsItLastedAndNoneIsInvisible(t *testing.T) {
	began := time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC)
	line := newTimeline([]discov.Event{
		{Time: began, From: discov.StateIdle, To: discov.StateRegistering},
		{Time: began.Add(time.Millisecond), From: discov.StateRegistering, To: discov.StatePublished},
		{Time: began.Add(time.Hour), From: discov.StatePublished, To: discov.StateRegistering, Err: errors.New("oh dear")},
	}, began.Add(2*time.Hour))
	require.Equal(t, began, line.From)
	require.Len(t, line.Spans, 3)
	x := 0.0
	for _, s := range line.Spans {
		require.InDelta(t, x, s.X, 1e-6, "they touch each other")
		require.GreaterOrEqual(t, s.Width, float64(leastWidth))
		x += s.Width
	}
	require.InDelta(t, timelineWidth, x, 1e-6)
	require.InDelta(t, line.Spans[1].Width, line.Spans[2].Width, 1)
	require.Equal(t, "oh dear", line.Spans[2].Why)
	require.Equal(t, time.Hour, line.Spans[2].For())
}

func TestATimelineThatHasJustBegunIsWhole(t *testing.T) {
	now := time.Now()
	line := newTimeline([]discov.Event{{Time: now, To: discov.StateStopped}}, now)
	require.InDelta(t, timelineWidth, line.Spans[0].Width, 1e-6)
	require.Empty(t, newTimeline(nil, now).Spans)
}
