package stream

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/discov-go/discov/internal/bubble"
	"github.com/discov-go/discov/internal/etcd"
	"github.com/stretchr/testify/require"
)

// answerAfter notes an answer to a request of now, after d.
func answerAfter(p *Pulse, d time.Duration) {
	began := time.Now()
	time.Sleep(d)
	p.NoteRoundTrip(began, time.Now())
}

func TestALongerRoundTripCountsAtOnceAndIsForgottenByHalves(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var p Pulse
		require.Zero(t, p.RoundTrip())
		for _, c := range []struct{ took, want int }{ // milliseconds
			{10, 10}, {4000, 4000}, {10, 2000}, {10, 1000}, {600, 600}, {10, 300}, {500, 500}, {250, 250}, {1, 125},
		} {
			answerAfter(&p, time.Duration(c.took)*time.Millisecond)
			want := time.Duration(c.want) * time.Millisecond
			require.Equal(t, want, p.RoundTrip())
			require.Equal(t, want*3/2, p.Late())
		}
	})
}

func TestWhatIsExpectedOfARoundTripIsTheLeast(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var p Pulse
		p.Expect(time.Second)
		require.Equal(t, time.Second, p.RoundTrip())
		p.Expect(time.Millisecond)
		require.Equal(t, time.Second, p.RoundTrip())
		require.True(t, p.IsSilentSince(time.Now()), "it is no answer")
		answerAfter(&p, time.Millisecond)
		require.Equal(t, time.Second/2, p.RoundTrip())
	})
}

func TestEtcdIsSilentSinceItsLastAnswer(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var p Pulse
		began := time.Now()
		require.True(t, p.IsSilentSince(began))
		time.Sleep(time.Second)
		p.NoteAnswer()
		require.False(t, p.IsSilentSince(began))
		require.False(t, p.IsSilentSince(time.Now()))
		require.True(t, p.IsSilentSince(time.Now().Add(1)))
		time.Sleep(time.Second)
		answerAfter(&p, time.Second)
		require.False(t, p.IsSilentSince(time.Now()))
	})
}

func TestARequestIsInAQueueWhileOnlyEarlierOnesAreAnswered(t *testing.T) {
	const d = 2 * time.Second
	for name, c := range map[string]struct {
		asked, answered, now time.Duration // of another request, and when it is asked about, since the request was made
		want                 bool
	}{
		"an earlier one":                     {-time.Second, time.Second, 2 * time.Second, true},
		"one of hardly later":                {d / 4, time.Second, 2 * time.Second, true},
		"a later one":                        {d / 2, time.Second * 3 / 2, 2 * time.Second, false},
		"an earlier one, long ago":           {-time.Second, time.Second, 4 * time.Second, false},
		"an earlier one, before it was made": {-2 * time.Second, -time.Second, time.Second / 2, false},
		"an earlier one, at the very last":   {-time.Second, time.Second, time.Second + d, true},
		"one of just under half of d later":  {d/2 - 1, time.Second, time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				var p Pulse
				time.Sleep(time.Minute)
				began := time.Now()
				time.Sleep(max(0, c.answered))
				p.NoteRoundTrip(began.Add(c.asked), began.Add(c.answered))
				time.Sleep(time.Until(began.Add(c.now)))
				require.Equal(t, c.want, p.IsQueue(began, d))
			})
		})
	}
}

func TestARequestThatIsOvertakenIsInNoQueueAnyMore(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var p Pulse
		began := time.Now()
		time.Sleep(time.Second)
		p.NoteRoundTrip(began.Add(time.Second), time.Now())
		require.False(t, p.IsQueue(began, time.Second))
		p.NoteRoundTrip(began.Add(-time.Second), time.Now())
		require.False(t, p.IsQueue(began, time.Second), "an older one does not undo that")
	})
}

func TestASilenceEndsWithAnAnswer(t *testing.T) {
	for name, end := range map[string]func(*Pulse){
		"an answer":            (*Pulse).NoteAnswer,
		"a round trip":         func(p *Pulse) { p.NoteRoundTrip(time.Now(), time.Now()) },
		"somebody who says so": (*Pulse).EndSilence,
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				var p Pulse
				require.Nil(t, p.Silence())
				require.NoError(t, p.AwaitSound(t.Context()))
				end(&p) // there is nothing to end
				p.BeginSilence()
				silence := p.Silence()
				p.BeginSilence()
				require.Equal(t, silence, p.Silence(), "it is the same one")
				heard := make(chan error, 3)
				for range 3 {
					go func() { heard <- p.AwaitSound(t.Context()) }()
				}
				synctest.Wait()
				require.Empty(t, heard)
				end(&p)
				for range 3 {
					require.NoError(t, <-heard)
				}
				<-silence
				require.Nil(t, p.Silence())
			})
		})
	}
}

func TestWhoAwaitsSoundInVainIsToldThatEtcdIsSilent(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var p Pulse
		p.BeginSilence()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := p.AwaitSound(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, etcd.ErrSilent.Error())
	})
}
