package conn

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/bubble"
	"github.com/stretchr/testify/require"
)

// never is when a fake candidate answers that does not.
const never = time.Duration(-1)

// fakeLink is a candidate that answers as the test wants it to.
type fakeLink struct {
	began  time.Time
	answer time.Duration // when it answers the trial, from the trial's beginning or the question on
	others time.Duration // when it answers others
	is     standing
	lateBy time.Duration
	stalls bool // whether it gives up as soon as a question has taken too long

	closed int
}

func newFakeLink(answer time.Duration) *fakeLink {
	return &fakeLink{began: time.Now(), answer: answer, others: never}
}

func after(ctx context.Context, d time.Duration) bool {
	if d == never {
		<-ctx.Done()
		return false
	}
	return sleep(ctx, d)
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func (l *fakeLink) probe(ctx context.Context) bool { return after(ctx, l.answer) }

func (l *fakeLink) probeOnce(ctx context.Context, within time.Duration) (time.Duration, bool) {
	began := time.Now()
	if l.stalls {
		sleep(ctx, max(within, probeTimeout))
		return 0, false
	}
	answered := after(ctx, l.answer)
	return time.Since(began), answered
}

func (l *fakeLink) awaitAnswer(ctx context.Context) bool { return after(ctx, l.others) }

func (l *fakeLink) standing(since time.Time) standing {
	is := l.is
	is.answers = is.answers || l.others != never && !l.began.Add(l.others).Before(since) && time.Since(l.began) >= l.others
	return is
}

func (l *fakeLink) late() time.Duration { return l.lateBy }

func (l *fakeLink) close() { l.closed++ }

// court is a trial with fake candidates. Its spares are patient and brisk in turns.
type court struct {
	trial
	suspect *fakeLink
	spares  []*fakeLink // those that are to be dialled, in this order; more stay silent
	dialled []*fakeLink
	dialErr error // of the last spare
}

func newCourt(suspect *fakeLink, spares ...*fakeLink) *court {
	c := &court{suspect: suspect, spares: spares}
	c.trial = trial{suspect: suspect, members: 1, dial: func(brisk bool) (candidate, error) {
		if brisk != (len(c.dialled)%2 == 1) {
			return nil, errors.New("the patient one comes first")
		}
		if len(c.spares) == 0 && c.dialErr != nil {
			return nil, c.dialErr
		}
		spare := newFakeLink(never)
		if len(c.spares) > 0 {
			spare, c.spares = c.spares[0], c.spares[1:]
		}
		c.dialled = append(c.dialled, spare)
		return spare, nil
	}}
	return c
}

// requireClosed checks that all have been given up, once, but the winner and the suspect.
func (c *court) requireClosed(t *testing.T, winner candidate) {
	t.Helper()
	require.Zero(t, c.suspect.closed, "the trial has closed the suspect")
	for i, spare := range c.dialled {
		want := 1
		if candidate(spare) == winner {
			want = 0
		}
		require.Equalf(t, want, spare.closed, "spare %d", i)
	}
}

func TestTrial(t *testing.T) {
	const ms = time.Millisecond
	const suspect, patient, brisk = "suspect", "patient", "brisk"
	for name, c := range map[string]struct {
		suspect        fakeLink
		patient, brisk time.Duration // when they answer, from their dial on
		members        int           // 1 where zero
		winner         string
		at             time.Duration // of the verdict
		dials          int
	}{
		"a suspect that answers at once needs no spare": {
			suspect: fakeLink{answer: 19 * ms, others: never}, patient: ms, brisk: ms,
			winner: suspect, at: 19 * ms,
		},
		"a suspect with long round trips has as long": {
			suspect: fakeLink{answer: 600 * ms, others: never, lateBy: 700 * ms}, patient: ms, brisk: ms,
			winner: suspect, at: 600 * ms,
		},
		"but not for ever": {
			suspect: fakeLink{answer: never, others: never, lateBy: time.Minute}, patient: 10 * ms, brisk: never,
			winner: patient, at: spareAfterMost + 20*ms, dials: 2,
		},
		"a silent suspect has as long again as the spare": {
			suspect: fakeLink{answer: never, others: never}, patient: 30 * ms, brisk: never,
			winner: patient, at: 80 * ms, dials: 2,
		},
		"and no longer than the head start": {
			suspect: fakeLink{answer: never, others: never}, patient: 700 * ms, brisk: never,
			winner: patient, at: 720*ms + headStart, dials: 2,
		},
		"it is kept where it answers in that time": {
			suspect: fakeLink{answer: 79 * ms, others: never}, patient: 30 * ms, brisk: never,
			winner: suspect, at: 79 * ms, dials: 2,
		},
		"it is kept where it answers before the spares": {
			suspect: fakeLink{answer: 40 * ms, others: never}, patient: 30 * ms, brisk: 30 * ms,
			winner: suspect, at: 40 * ms, dials: 2,
		},
		"one that answers others has the whole head start": {
			suspect: fakeLink{answer: 500 * ms, others: 15 * ms}, members: 3, patient: 10 * ms, brisk: never,
			winner: suspect, at: 500 * ms, dials: 2,
		},
		"and no more": {
			suspect: fakeLink{answer: never, others: 15 * ms}, members: 3, patient: 10 * ms, brisk: never,
			winner: patient, at: 30*ms + headStart, dials: 2,
		},
		"one with a login under way has four times as long": {
			suspect: fakeLink{answer: 3900 * ms, others: never, is: standing{loggingIn: true}}, patient: 800 * ms, brisk: never,
			winner: suspect, at: 3900 * ms, dials: 2,
		},
		"and no more where it is silent": {
			suspect: fakeLink{answer: never, others: never, is: standing{loggingIn: true}}, patient: 10 * ms, brisk: never,
			winner: patient, at: 30*ms + 4*10*ms, dials: 2,
		},
		"but the head start where it answers others": {
			suspect: fakeLink{answer: never, others: 15 * ms, is: standing{loggingIn: true}}, members: 3, patient: 10 * ms, brisk: never,
			winner: patient, at: 30*ms + headStart, dials: 2,
		},
		"an only member's answer to anybody counts": {
			suspect: fakeLink{answer: never, others: 15 * ms}, patient: ms, brisk: ms,
			winner: suspect, at: 15 * ms,
		},
		"one of several members' does not": {
			suspect: fakeLink{answer: never, others: 15 * ms}, members: 3, patient: ms, brisk: never,
			winner: patient, at: 21*ms + headStart, dials: 2,
		},
		"the patient spare is taken where both answer": {
			suspect: fakeLink{answer: never, others: never}, patient: 59 * ms, brisk: 30 * ms,
			winner: patient, at: 80 * ms, dials: 2,
		},
		"also where it comes first": {
			suspect: fakeLink{answer: never, others: never}, patient: 30 * ms, brisk: 40 * ms,
			winner: patient, at: 80 * ms, dials: 2,
		},
		"the brisk one is taken where the patient one is stuck": {
			suspect: fakeLink{answer: never, others: never}, patient: 61 * ms, brisk: 30 * ms,
			winner: brisk, at: 80 * ms, dials: 2,
		},
		"the patient one has the head start at most": {
			suspect: fakeLink{answer: never, others: never}, patient: 1201 * ms, brisk: 700 * ms,
			winner: brisk, at: 720*ms + headStart, dials: 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				began := time.Now()
				c.suspect.began = began
				court := newCourt(&c.suspect, newFakeLink(c.patient), newFakeLink(c.brisk))
				court.members = max(1, c.members)
				winner := court.run(t.Context())
				require.Equal(t, c.at, time.Since(began))
				require.Len(t, court.dialled, c.dials)
				switch c.winner {
				case suspect:
					require.Same(t, court.suspect, winner)
				case patient:
					require.Same(t, court.dialled[0], winner)
				case brisk:
					require.Same(t, court.dialled[1], winner)
				}
				court.requireClosed(t, winner)
			})
		})
	}
}

func TestSparesThatStallAreGivenUpForOthersAfterAPause(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		began := time.Now()
		stuck, other := newFakeLink(never), newFakeLink(never)
		stuck.stalls = true
		well := newFakeLink(10 * time.Millisecond)
		court := newCourt(newFakeLink(never), other, stuck, well)
		winner := court.run(t.Context())
		require.Same(t, well, winner)
		require.Len(t, court.dialled, 4)
		require.Greater(t, time.Since(began), probeTimeout+spareAfterLeast)
		court.requireClosed(t, winner)
	})
}

func TestASpareThatStallsHasAsLongAsARoundTripTakes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		began := time.Now()
		suspect := newFakeLink(never)
		suspect.lateBy = 3 * time.Second
		stuck := newFakeLink(never)
		stuck.stalls = true
		court := newCourt(suspect, newFakeLink(never), stuck, newFakeLink(0))
		court.run(t.Context())
		require.Greater(t, time.Since(began), suspect.lateBy+spareAfterMost)
	})
}

func TestNoSpareIsDialledOnceTheSuspectIsWellBetweenTwoRounds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		suspect, stuck := newFakeLink(spareAfterLeast+probeTimeout+time.Millisecond), newFakeLink(never)
		stuck.stalls = true
		court := newCourt(suspect, newFakeLink(never), stuck)
		require.Same(t, suspect, court.run(t.Context()))
		require.Len(t, court.dialled, 2)
		court.requireClosed(t, suspect)
	})
}

func TestATrialWhoseSpareCannotBeMadeEnds(t *testing.T) {
	for made := range 2 {
		bubble.Test(t, func(t *testing.T) {
			court := newCourt(newFakeLink(never), []*fakeLink{newFakeLink(0)}[:made]...)
			court.dialErr = errors.New("no such file")
			require.Nil(t, court.run(t.Context()))
			require.Len(t, court.dialled, made)
			court.requireClosed(t, nil)
		})
	}
}

func TestATrialEndsWithItsContextAndGivesAllSparesUp(t *testing.T) {
	for name, c := range map[string]struct {
		after, patient time.Duration
		dials          int
	}{
		"before there are spares":             {after: 10 * time.Millisecond, patient: never},
		"while they are silent":               {after: 50 * time.Millisecond, patient: never, dials: 2},
		"while one has answered":              {after: 50 * time.Millisecond, patient: 20 * time.Millisecond, dials: 2},
		"in the pause after they have failed": {after: spareAfterLeast + probeTimeout + time.Millisecond, patient: 0, dials: 2},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) { // which fails where a goroutine is left
				ctx, cancel := context.WithTimeout(t.Context(), c.after)
				defer cancel()
				began, patient, brisk := time.Now(), newFakeLink(c.patient), newFakeLink(never)
				if c.patient == 0 {
					patient.stalls, brisk.stalls = true, true
				}
				court := newCourt(newFakeLink(never), patient, brisk)
				require.Nil(t, court.run(ctx))
				require.Equal(t, c.after, time.Since(began))
				require.Len(t, court.dialled, c.dials)
				court.requireClosed(t, nil)
			})
		})
	}
}
