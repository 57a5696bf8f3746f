package discov

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/discov-go/discov/internal/bubble"
	"github.com/discov-go/discov/internal/etcd"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestAnySequenceEndsInTheStateAskedForLast is a property test: whatever the user calls and etcd does, once the faults
// are over etcd is as the user wanted it last, no state was passed on a way that the diagram lacks, no call outlasted its
// bound, and nothing is left.
func TestAnySequenceEndsInTheStateAskedForLast(t *testing.T) {
	seeds := 300
	if testing.Short() {
		seeds = 50
	}
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) { newScenario(t, seed).run() })
		})
	}
}

// scenario is one random sequence.
type scenario struct {
	t      *testing.T
	random *rand.Rand
	fake   *fakeEtcd
	p      *Publisher
	calls  sync.WaitGroup
	// resumes counts the calls of Resume.
	resumes atomic.Int32
	patient patient // whose health is checked, in some

	events EventLog
	story  []string

	mu sync.Mutex // guards random
}

func newScenario(t *testing.T, seed uint64) *scenario {
	s := &scenario{t: t, random: rand.New(rand.NewPCG(seed, 1)), fake: newFakeEtcd(t)}
	opts := []PubOption{WithObserver(s.events.Observe)}
	if s.pick(2) == 0 {
		opts = append(opts, WithId(7))
	}
	if s.pick(3) == 0 {
		opts = append(opts, WithBackgroundStart())
	}
	if s.pick(2) == 0 {
		policy := HealthPolicy{Interval: time.Second, Failures: 1 + s.pick(2), Successes: 1 + s.pick(2)}
		opts = append(opts, WithHealthCheck(s.patient.check, policy))
	}
	s.p = s.fake.publisher(opts...)
	return s
}

func (s *scenario) tell(format string, args ...any) {
	s.story = append(s.story, fmt.Sprintf("%s %s", time.Now().Format("04:05.000"), fmt.Sprintf(format, args...)))
}

func (s *scenario) run() {
	defer func() {
		if s.t.Failed() {
			s.t.Logf("%s\nevents: %v\n%v", strings.Join(s.story, "\n"), s.events.All(), s.fake)
		}
	}()
	s.fake.meets(s.meet)
	down, paused := false, false
	for range 30 {
		switch s.pick(13) {
		case 0, 1:
			paused = true
			s.call("pause", s.pause)
		case 2, 3:
			paused = false
			s.resumes.Add(1)
			s.call("resume", func(ctx context.Context) { _ = s.p.ResumeContext(ctx) })
		case 4:
			value := fmt.Sprint("v", s.pick(1000))
			s.call("update "+value, func(ctx context.Context) { _ = s.p.Update(ctx, value) })
		case 5, 6:
			s.call("keep alive", func(ctx context.Context) { _ = s.p.KeepAliveContext(ctx) })
		case 7:
			s.tell("delete the key")
			s.fake.remove(s.p.Status().Key)
		case 8:
			s.tell("end the lease")
			s.fake.expire(s.p.Status().Lease)
		case 9:
			s.tell("wipe")
			s.fake.wipe()
		case 10:
			if down = !down; down {
				s.tell("down")
				s.fake.down()
			} else {
				s.tell("back")
				s.fake.back()
			}
		case 11:
			s.fake.lend(99)
			s.fake.set(s.p.Status().Key, "another", []clientv3.LeaseID{0, 99}[s.pick(2)])
			s.tell("overwritten")
		case 12:
			s.patient.ill.Store(!s.patient.ill.Load())
			s.tell("ill %v", s.patient.ill.Load())
		}
		time.Sleep(time.Duration(s.pick(4_000_000)) * time.Microsecond)
	}
	if down {
		s.fake.back()
	}
	s.fake.heal()
	s.patient.ill.Store(false)
	s.fake.expire(99)
	s.calls.Wait()
	s.tell("all is well")
	settle(quietTime + 2*time.Second) // what may be put over in a minute may have been used up
	s.check(paused)
	s.tell("stop")
	require.NoError(s.t, s.p.StopContext(s.t.Context()))
	require.Empty(s.t, s.fake.leaseIDs())
	synctest.Wait()
	s.events.requireDrawn(s.t)
	require.Empty(s.t, s.fake.watches)
}

// call makes a call in the background, or waits for it, and checks its bound. The order in which background calls take
// hold is that of the story, because the bubble lets each get as far as it can.
func (s *scenario) call(name string, run func(context.Context)) {
	s.tell("%s", name)
	bound := defaultTimeout
	ctx, cancel := context.WithCancel(context.Background())
	if s.pick(3) == 0 {
		bound = time.Duration(s.pick(int(time.Second)))
		ctx, cancel = context.WithTimeout(context.Background(), bound)
	}
	s.calls.Go(func() {
		defer cancel()
		began := time.Now()
		run(ctx)
		if took := time.Since(began); took > bound+100*time.Millisecond {
			s.t.Errorf("%s took %v", name, took)
		}
	})
	synctest.Wait()
	if s.pick(2) == 0 {
		s.calls.Wait()
	}
}

// pause demands that nothing is there when Pause says so, unless a Resume has come.
func (s *scenario) pause(ctx context.Context) {
	resumes := s.resumes.Load()
	err := s.p.PauseContext(ctx)
	ids := slices.DeleteFunc(s.fake.leaseIDs(), func(id clientv3.LeaseID) bool { return id == 99 })
	if err == nil && s.resumes.Load() == resumes && len(ids) > 0 {
		s.t.Errorf("Pause returned nil, and there are leases %v", ids)
	}
}

// pick is a random number below n.
func (s *scenario) pick(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.random.IntN(n)
}

// meet is the trouble of one call.
func (s *scenario) meet(string) trouble {
	switch s.pick(8) {
	case 0:
		return trouble{before: errRefused}
	case 1:
		return trouble{after: errReset}
	case 2:
		return trouble{delay: time.Duration(s.pick(4_000_000)) * time.Microsecond}
	default:
		return trouble{}
	}
}

// check compares etcd with what the user wanted last.
func (s *scenario) check(paused bool) {
	status := s.p.Status()
	now := s.fake.at(status.Key)
	ids := s.fake.leaseIDs()
	switch {
	case status.State == StateIdle:
		require.Empty(s.t, ids, "a KeepAlive that failed leaves nothing")
	case paused:
		require.Equal(s.t, StatePaused, status.State)
		require.Empty(s.t, ids)
	default:
		require.Equal(s.t, StatePublished, status.State)
		require.Equal(s.t, []clientv3.LeaseID{status.Lease}, ids)
		require.Equal(s.t, etcd.Entry{Value: status.Value, Lease: status.Lease, Rev: now.Rev}, now)
	}
}
