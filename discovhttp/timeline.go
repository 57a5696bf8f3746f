package discovhttp

import (
	"time"

	"github.com/discov-go/discov"
)

// The timeline's size, in its own units; the browser scales it.
const (
	timelineWidth = 1000
	// Each state is this wide at least, so that what took a moment is seen too. The rest of the width is shared by duration.
	leastWidth = 4
)

// timeline is a bar of the states that a Publisher has been in.
type timeline struct {
	From, To time.Time
	Spans    []span
}

// span is one state in it.
type span struct {
	State    discov.State
	From, To time.Time
	Why      string // the error with which it began, if any
	X, Width float64
}

// For is how long the state lasted.
func (s span) For() time.Duration { return s.To.Sub(s.From) }

// newTimeline returns the timeline of the changes until now.
func newTimeline(changes []discov.Event, now time.Time) timeline {
	if len(changes) == 0 {
		return timeline{}
	}
	line := timeline{From: changes[0].Time, To: now}
	for i, e := range changes {
		end := now
		if i+1 < len(changes) {
			end = changes[i+1].Time
		}
		line.Spans = append(line.Spans, span{State: e.To, From: e.Time, To: end, Why: text(e.Err)})
	}
	line.layOut()
	return line
}

func (l *timeline) layOut() {
	shared := timelineWidth - leastWidth*float64(len(l.Spans))
	x := 0.0
	for i := range l.Spans {
		s := &l.Spans[i]
		part := 1 / float64(len(l.Spans)) // of a timeline that has just begun
		if whole := l.To.Sub(l.From); whole > 0 {
			part = float64(s.For()) / float64(whole)
		}
		s.X, s.Width = x, leastWidth+shared*part
		x += s.Width
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
