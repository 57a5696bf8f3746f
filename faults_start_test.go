package discov_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
)

// KeepAlive where etcd cannot be reached.

func TestKeepAliveFailsInTimeWhereEtcdIsOutOfReachAndSucceedsLater(t *testing.T) {
	t.Parallel()
	for name, o := range unreachable() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := o.on(t)
			o.begin(s)
			pub := s.newInstance("a:1", append(withID(shortTTL), discov.WithTimeout(time.Second))...)
			err := s.bounded(time.Second, pub.start)
			require.Error(t, err)
			t.Log(err)
			require.ErrorContains(t, err, prefix)
			pub.requireState(discov.StateIdle) // on a slow machine the bound comes before the clean-up's end
			var left *discov.WithdrawError
			if !errors.As(err, &left) { // or else the withdrawal goes on
				requireNoGoroutines(s.t)
			}
			o.end(s)
			s.requireGone(s.begin("mended"), shortTTL+expiryLag) // what was on its way may have been applied
			requireNoGoroutines(s.t)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			require.NoError(t, s.bounded(5*time.Second, func() error { return pub.startWithin(ctx) }))
			s.requireTrue(time.Now(), 0, pub)
		})
	}
}

func TestKeepAliveThatIsWaitingRegistersAsSoonAsEtcdAnswers(t *testing.T) {
	t.Parallel()
	for name, o := range unreachable() {
		for _, background := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, in the background: %v", name, background), func(t *testing.T) {
				t.Parallel()
				s := o.on(t)
				o.begin(s)
				options := append(withID(shortTTL), discov.WithTimeout(10*time.Second))
				if background {
					options = append(options, discov.WithBackgroundStart())
				}
				pub := s.newInstance("a:1", options...)
				var started <-chan error
				if background {
					require.NoError(t, s.bounded(0, pub.start), "KeepAlive does not wait")
				} else {
					started = startLater(pub)
				}
				time.Sleep(4 * time.Second)
				o.end(s)
				mended := s.begin("mended")
				s.figure("registered", s.requireTrue(mended, atOnce, pub))
				if !background {
					require.NoError(t, <-started)
				}
				time.Sleep(shortTTL + expiryLag)
				s.requireTrue(time.Now(), 0, pub)
				s.requireNeverAbsent(pub)
			})
		}
	}
}

// startLater starts the Publisher in the background.
func startLater(pub *instance) <-chan error {
	started := make(chan error, 1)
	go func() { started <- pub.start() }()
	return started
}

func TestKeepAliveSucceedsWithOneOfThreeEndpointsOutOfReach(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*etcdtest.Path){
		"dead":   (*etcdtest.Path).Refuse,
		"silent": (*etcdtest.Path).Swallow,
	} {
		for which := range 3 {
			t.Run(fmt.Sprintf("%s, number %d", name, which), func(t *testing.T) {
				t.Parallel()
				etcd := etcdtest.Start(t) // three ways to one member: the client cannot tell
				var endpoints []string
				for i := range 3 {
					path := etcdtest.NewPath(t, etcd.Endpoints()[0])
					if i == which {
						fault(path)
					}
					endpoints = append(endpoints, path.Endpoint())
				}
				s := newScene(t, etcd)
				s.endpoints = endpoints
				pub := s.newInstance("a:1", withID(shortTTL)...)
				began := time.Now()
				require.NoError(t, s.bounded(5*time.Second, pub.start))
				s.figure("KeepAlive", time.Since(began))
				time.Sleep(2 * shortTTL)
				s.requireTrue(time.Now(), 0, pub)
				s.requireNeverAbsent(pub)
			})
		}
	}
}
