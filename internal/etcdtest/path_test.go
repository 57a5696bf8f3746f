package etcdtest_test

import (
	"bufio"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// echo is a target that sends every line back, and can go away.
type echo struct {
	net.Listener
	conns chan net.Conn
}

func newEcho(t testing.TB, addr string) *echo {
	t.Helper()
	l, err := net.Listen("tcp4", addr)
	require.NoError(t, err)
	e := &echo{l, make(chan net.Conn, 100)}
	t.Cleanup(e.stop)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(e.conns)
				return
			}
			e.conns <- c
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return e
}

// stop closes everything.
func (e *echo) stop() {
	e.Close()
	for c := range e.conns {
		c.Close()
	}
}

// line is a client's connection through a path.
type line struct {
	net.Conn
	in *bufio.Reader
}

func dial(t testing.TB, p *etcdtest.Path) *line {
	t.Helper()
	c, err := net.Dial("tcp", p.Endpoint())
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return &line{c, bufio.NewReader(c)}
}

func (l *line) say(t testing.TB, word string) {
	t.Helper()
	l.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_, err := io.WriteString(l, word+"\n")
	require.NoError(t, err)
}

func (l *line) hear(wait time.Duration) (string, error) {
	l.SetReadDeadline(time.Now().Add(wait))
	word, err := l.in.ReadString('\n')
	if err != nil {
		return word, err
	}
	return word[:len(word)-1], nil
}

func (l *line) requireEcho(t testing.TB, word string) {
	t.Helper()
	l.say(t, word)
	got, err := l.hear(5 * time.Second)
	require.NoError(t, err)
	require.Equal(t, word, got)
}

func (l *line) requireSilence(t testing.TB) {
	t.Helper()
	_, err := l.hear(100 * time.Millisecond)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func (l *line) requireReset(t testing.TB) {
	t.Helper()
	_, err := l.hear(5 * time.Second)
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

func newLine(t testing.TB) (*echo, *etcdtest.Path, *line) {
	t.Helper()
	e := newEcho(t, etcdtest.FreeAddr(t))
	p := etcdtest.NewPath(t, e.Addr().String())
	l := dial(t, p)
	l.requireEcho(t, "hello")
	return e, p, l
}

func TestSwallowedBytesArriveAfterHeal(t *testing.T) {
	t.Parallel()
	_, p, l := newLine(t)
	p.Swallow()
	p.Swallow()
	l.say(t, "late")
	l.requireSilence(t)
	new := dial(t, p)
	new.say(t, "late too")
	new.requireSilence(t)
	etcdtest.RequireSoon(t, 5*time.Second, func() bool { return p.Connections() == 2 })
	p.Heal()
	p.Heal()
	for want, l := range map[string]*line{"late": l, "late too": new} {
		got, err := l.hear(5 * time.Second)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

func TestSwallowHidesThatTheTargetIsGoneUntilHeal(t *testing.T) {
	t.Parallel()
	e, p, l := newLine(t)
	p.Swallow()
	e.stop()
	l.requireSilence(t)
	new := dial(t, p)
	new.requireSilence(t)
	p.Heal()
	_, err := l.hear(5 * time.Second)
	require.ErrorIs(t, err, io.EOF)
	new.requireReset(t)
	etcdtest.RequireSoon(t, 5*time.Second, func() bool { return p.Connections() == 0 })
}

func TestDeafConnectionsStayDeafAndOpenForEver(t *testing.T) {
	t.Parallel()
	e, p, l := newLine(t)
	p.DeafenCurrent()
	l.say(t, "anybody?")
	l.requireSilence(t)
	dial(t, p).requireEcho(t, "later ones work")
	p.Swallow()
	p.Heal()
	l.requireSilence(t)
	e.stop()
	l.say(t, "still?")
	l.requireSilence(t)
	etcdtest.RequireSoon(t, 5*time.Second, func() bool { return p.Connections() == 1 })
	p.Reset()
	l.requireReset(t)
}

func TestDeafConnectionsAcceptAnyAmountOfBytes(t *testing.T) {
	t.Parallel()
	_, p, l := newLine(t)
	p.DeafenCurrent()
	l.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_, err := l.Write(make([]byte, 32<<20))
	require.NoError(t, err)
}

func TestResetResetsOpenConnectionsOnly(t *testing.T) {
	t.Parallel()
	_, p, l := newLine(t)
	p.Reset()
	require.Zero(t, p.Connections())
	l.requireReset(t)
	dial(t, p).requireEcho(t, "again")
}

func TestRefuseRefusesNewConnectionsUntilAccept(t *testing.T) {
	t.Parallel()
	_, p, l := newLine(t)
	for range 3 {
		p.Refuse()
		p.Refuse()
		_, err := net.Dial("tcp", p.Endpoint())
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		l.requireEcho(t, "open ones stay")
		p.Accept()
		p.Accept()
		dial(t, p).requireEcho(t, "again")
	}
}

func TestConnectionsToATargetThatIsGoneAreResetNotSilent(t *testing.T) {
	t.Parallel()
	e, p, l := newLine(t)
	e.stop()
	_, err := l.hear(5 * time.Second)
	require.ErrorIs(t, err, io.EOF)
	for range 30 { // the proxy's own channel of errors holds 16
		if c, err := net.Dial("tcp", p.Endpoint()); err != nil {
			require.ErrorIs(t, err, syscall.ECONNRESET) // it may come first
		} else {
			(&line{c, bufio.NewReader(c)}).requireReset(t)
			c.Close()
		}
	}
	newEcho(t, e.Addr().String())
	dial(t, p).requireEcho(t, "back")
}

func TestLatencyDelaysEachWay(t *testing.T) {
	t.Parallel()
	_, p, l := newLine(t)
	p.Latency(100 * time.Millisecond)
	start := time.Now()
	l.requireEcho(t, "slow")
	require.GreaterOrEqual(t, time.Since(start), 200*time.Millisecond)
	p.Latency(0)
	l.requireEcho(t, "quick")
}

func TestConnectionsAreCountedUntilTheClientCloses(t *testing.T) {
	t.Parallel()
	_, p, l := newLine(t)
	other := dial(t, p)
	other.requireEcho(t, "two")
	require.Equal(t, 2, p.Connections())
	l.Close()
	etcdtest.RequireSoon(t, 5*time.Second, func() bool { return p.Connections() == 1 })
}

func TestCloseFreesSwallowedDeafAndDelayedConnections(t *testing.T) {
	t.Parallel()
	_, p, l := newLine(t)
	p.DeafenCurrent()
	dial(t, p).requireEcho(t, "open")
	p.Latency(time.Hour)
	delayed := dial(t, p)
	delayed.say(t, "stuck")
	p.Swallow()
	dial(t, p).say(t, "stuck too")
	p.Close()
	p.Close()
	require.Zero(t, p.Connections())
	_, err := l.hear(5 * time.Second)
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	_, err = net.Dial("tcp", p.Endpoint())
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}

func TestCloseDoesNotWaitForATargetThatNeverReads(t *testing.T) {
	t.Parallel()
	target, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer target.Close()
	p := etcdtest.NewPath(t, target.Addr().String())
	l := dial(t, p)
	l.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	_, err = l.Write(make([]byte, 32<<20))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	p.DeafenCurrent() // deaf at last, it takes the rest
	l.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_, err = l.Write(make([]byte, 32<<20))
	require.NoError(t, err)
	start := time.Now()
	p.Close()
	require.Less(t, time.Since(start), 5*time.Second)
}

func TestAClientGoesThroughAPath(t *testing.T) {
	t.Parallel()
	ca := etcdtest.NewCA(t)
	for _, cfg := range []clientv3.Config{{}, {TLS: tlsConfig(t, ca.Issue(t))}} {
		opts := []etcdtest.Option{etcdtest.QuickTicks()}
		if cfg.TLS != nil {
			opts = append(opts, etcdtest.WithServerTLS(ca.Issue(t)))
		}
		s := etcdtest.Start(t, opts...)
		p := etcdtest.NewPath(t, s.Endpoints()[0])
		cfg.Endpoints = []string{p.Endpoint()}
		c := client(t, cfg)
		put(t, c, "k", "v")
		require.Equal(t, 1, p.Connections())
		p.Reset()
		require.Equal(t, "v", get(t, c, "k"))
		s.Restart()
		require.Equal(t, "v", get(t, c, "k"))
		p.Swallow()
		_, err := c.Get(within(t, 100*time.Millisecond), "k")
		require.Error(t, err)
		p.Heal()
		require.Equal(t, "v", get(t, c, "k"))
	}
}
