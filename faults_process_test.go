package discov_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
)

// Processes that register, and are frozen, killed or end by themselves.

// A run of this binary with childEndpoint set is no test, but a service of one registration.
const childEndpoint = "DISCOV_TEST_CHILD_ENDPOINT"

// How a child is to end, in the words of its standard input. One whose parent is gone ends, too.
const (
	withStop    = "with Stop\n"
	withoutStop = "without Stop\n"
)

// serve registers, tells its key, and ends as it is told.
func serve(endpoint string) int {
	pub := discov.NewPublisher([]string{endpoint}, prefix, "a:1", withID(shortTTL)...)
	if err := pub.KeepAlive(); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(pub.Status().Key)
	if how, _ := bufio.NewReader(os.Stdin).ReadString('\n'); how == withStop {
		pub.Stop()
	}
	return 0
}

// child is a process that has registered.
type child struct {
	*exec.Cmd
	stdin io.Writer
}

const childKey = prefix + "/7"

func startChild(t *testing.T, s *scene, endpoint string) *child {
	t.Helper()
	c := &child{Cmd: exec.CommandContext(t.Context(), os.Args[0])}
	c.Env = append(os.Environ(), childEndpoint+"="+endpoint)
	c.Stderr = os.Stderr
	stdin, err := c.StdinPipe()
	require.NoError(t, err)
	c.stdin = stdin
	stdout, err := c.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, c.Start())
	t.Cleanup(func() {
		stdin.Close()
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	said, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, childKey+"\n", said)
	require.True(t, s.Present(t, childKey))
	return c
}

// end makes the process end in this way.
func (c *child) end(t *testing.T, how string) {
	t.Helper()
	_, err := io.WriteString(c.stdin, how)
	require.NoError(t, err)
	require.NoError(t, c.Wait())
}

// requireGoneWithItsLease waits until the key of a process that is no more has gone.
func (s *scene) requireGoneWithItsLease(ended time.Time) {
	s.t.Helper()
	s.figure("gone", s.requireGone(ended, shortTTL+expiryLag))
}

func TestAProcessThatEndsRightAfterStopLeavesNothing(t *testing.T) {
	t.Parallel()
	s := onServer(t)
	startChild(t, s, s.server.Endpoints()[0]).end(t, withStop)
	require.False(t, s.Present(t, childKey))
	s.server.RequireLeases(t, 0)
	etcdtest.RequireSoon(t, atOnce, func() bool {
		return s.server.Watchers() == 0 && s.server.OpenStreams("Watch") == 0 && s.server.OpenStreams("LeaseKeepAlive") == 0 && s.server.Connections() == 0
	}, "no watcher, stream or connection is left")
}

func TestAProcessThatEndsWithoutStopLeavesItsKeyForOneTTL(t *testing.T) {
	t.Parallel()
	s := onServer(t)
	startChild(t, s, s.server.Endpoints()[0]).end(t, withoutStop)
	ended := s.begin("ended")
	require.True(t, s.Present(t, childKey))
	s.requireGoneWithItsLease(ended)
}

func TestAProcessThatWasFrozenHasItsKeyBackWithinASecondOfGoingOn(t *testing.T) {
	t.Parallel()
	s := onServer(t)
	c := startChild(t, s, s.server.Endpoints()[0])
	for _, frozen := range []time.Duration{shortTTL / 3, shortTTL + 100*time.Millisecond, shortTTL + 600*time.Millisecond, 2 * shortTTL} {
		etcdtest.Suspend(t, c.Process)
		s.begin("frozen")
		time.Sleep(frozen)
		etcdtest.Resume(t, c.Process)
		goes := s.begin("goes on")
		time.Sleep(atOnce)
		time.Sleep(s.meter.allowance(goes, time.Now())) // a late machine has longer
		require.True(t, s.Present(t, childKey))
		if absences := s.Absences(childKey); len(absences) > 0 {
			s.figure("frozen for "+frozen.String(), absences[len(absences)-1].To.Sub(goes))
		}
		time.Sleep(atOnce)
		require.True(t, s.Present(t, childKey))
		require.Equal(t, 1, s.server.Leases(t))
		require.Len(t, s.Keys(t), 1)
	}
	require.NoError(t, c.Process.Kill())
	s.requireGoneWithItsLease(s.begin("killed"))
}
