package conn

import (
	"context"
	"sync"
	"time"

	"github.com/discov-go/discov/internal/backoff"
)

// A candidate is a link in a trial.
type candidate interface {
	// probe asks all members something until they answer. It returns false if ctx is done first.
	probe(ctx context.Context) bool
	// probeOnce asks something once there is a connection, and returns how long the answer took. It returns false if that is
	// too long, where within is no bound that is too short, or if ctx is done first.
	probeOnce(ctx context.Context, within time.Duration) (took time.Duration, answered bool)
	// awaitAnswer waits for an answer to anybody, while there is a connection. It returns false if ctx is done first.
	awaitAnswer(ctx context.Context) bool
	// standing returns what speaks for a candidate in doubt.
	standing(since time.Time) standing
	// late returns after which time an answer is late.
	late() time.Duration
	// close gives up a spare.
	close()
}

// standing is what speaks for a candidate in doubt: whether etcd answers others over it, and whether a login is under way
// that would have to be made again.
type standing struct{ answers, loggingIn bool }

// A trial finds out whether etcd or a link is at fault. The link is given two spares, a patient and a brisk one, and all
// are asked until one answers, for as long as an outage may last.
type trial struct {
	suspect candidate
	members int
	dial    func(brisk bool) (candidate, error)
}

// run asks all, and returns the first that answers, with some preference for the suspect and then for the patient spare. It
// returns nil if ctx is done first, or where no spare can be made. It has given up the others.
func (t *trial) run(ctx context.Context) candidate {
	began := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	well := make(chan struct{})
	find := sync.OnceFunc(func() { close(well) })
	asking.Go(func() {
		if t.suspect.probe(ctx) {
			find()
		}
	})
	asking.Go(func() {
		// Any answer to anybody will do where there is but one member to answer.
		if t.suspect.awaitAnswer(ctx) && t.members == 1 {
			find()
		}
	})
	wait := min(max(t.suspect.late(), spareAfterLeast), spareAfterMost)
	for again := backoff.New(); !awaitDone(ctx, well, wait); wait = again.Take() {
		if ctx.Err() != nil {
			return nil
		}
		patient, err := t.dial(false)
		if err != nil {
			return nil // bad files or tuning; the link in doubt may still recover
		}
		brisk, err := t.dial(true)
		if err != nil {
			patient.close()
			return nil
		}
		if winner := t.round(ctx, well, began, patient, brisk); winner != nil {
			return winner
		}
	}
	return t.suspect
}

// sound is a spare that was answered, and how long that took.
type sound struct {
	spare candidate
	took  time.Duration
}

// round asks the spares until one of them or the suspect is found well, and returns nil where a spare has stalled as well.
// It closes the spares that have not won.
func (t *trial) round(ctx context.Context, well <-chan struct{}, began time.Time, patient, brisk candidate) (winner candidate) {
	spares := []candidate{patient, brisk}
	asked, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	answered := make(chan sound, len(spares))
	stalled := make(chan struct{}, len(spares))
	for _, spare := range spares {
		asking.Go(func() {
			if took, ok := spare.probeOnce(asked, t.suspect.late()); ok {
				answered <- sound{spare, took}
			} else {
				stalled <- struct{}{}
			}
		})
	}
	select {
	case <-well:
		winner = t.suspect
	case first := <-answered:
		isWell := awaitDone(ctx, well, t.headStartOver(began, first.took))
		switch {
		case isWell:
			winner = t.suspect
		case ctx.Err() != nil:
		case len(answered) > 0: // both are well
			winner = patient
		default:
			winner = first.spare
		}
	case <-stalled:
	case <-ctx.Done():
	}
	cancel()
	asking.Wait()
	for _, spare := range spares {
		if spare != winner {
			spare.close()
		}
	}
	return winner
}

// headStartOver returns how much longer than a spare, which took so long, the suspect may take. The patient spare has as long
// where the brisk one came first.
func (t *trial) headStartOver(began time.Time, took time.Duration) time.Duration {
	start, standing := min(headStart, took), t.suspect.standing(began)
	if standing.answers {
		start = headStart
	}
	if standing.loggingIn {
		start = max(start, loginHeadStart*took)
	}
	return start
}

// awaitDone waits until done is closed, and returns false if that takes longer than d, or if ctx is done first.
func awaitDone(ctx context.Context, done <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	case <-ctx.Done():
		return false
	}
}

// awaitAnswer waits for an answer to anybody. A link that has lost its connection is not silent: what is sent waits for
// the next one.
func (l *link) awaitAnswer(ctx context.Context) bool {
	began := time.Now()
	for ctx.Err() == nil {
		over := l.pulse.Silence()
		if over == nil {
			if !l.pulse.IsSilentSince(began) {
				return true
			}
			<-ctx.Done()
			return false
		}
		lost, cancel := context.WithCancel(ctx)
		go func() {
			defer cancel()
			l.ready.awaitLoss(lost)
		}()
		select {
		case <-over:
		case <-lost.Done():
			l.pulse.EndSilence()
		}
		cancel()
	}
	return false
}

func (l *link) standing(since time.Time) standing {
	return standing{answers: !l.pulse.IsSilentSince(since), loggingIn: l.account.IsLoggingIn() && l.ready.isReady()}
}

func (l *link) late() time.Duration { return l.pulse.Late() }
