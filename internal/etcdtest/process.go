package etcdtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	childEnv   = "ETCDTEST_CHILD" // a config in JSON makes this binary an etcd
	countsPath = "/etcdtest/counts"
)

// Main is TestMain for packages that use StartProcess: it returns m.Run's exit code, or never, in a child.
func Main(m *testing.M) int {
	RunIfChild()
	return m.Run()
}

// RunIfChild makes this process an etcd, and never returns, if StartProcess of another one has started it. Call it
// first in TestMain, or in main.
func RunIfChild() {
	if spec := os.Getenv(childEnv); spec != "" {
		if err := serve(spec); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// serve is the life of a child: until its parent is gone, which closes stdin, or asks it to go.
func serve(spec string) error {
	orphaned := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(orphaned)
	}()
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM, syscall.SIGINT)

	var c config
	if err := json.Unmarshal([]byte(spec), &c); err != nil {
		return err
	}
	go func() {
		<-orphaned
		os.Exit(0)
	}()
	e := &embedded{counter: newCounter()}
	if err := e.open(c); err != nil {
		return err
	}
	news := os.NewFile(3, "news")
	news.WriteString("o") // open
	if err := e.ready(); err != nil {
		return err
	}
	news.WriteString("r") // ready
	news.Close()

	if <-told == syscall.SIGTERM {
		e.stop(gracefully)
	} else {
		e.stop(together)
	}
	return nil
}

// A Process is a member in a child process: this binary, run once more. The package's TestMain must call Main or
// RunIfChild. The child never outlives this process.
type Process struct {
	*member
	child *child
}

// StartProcess runs one member in a child process, ready for requests when StartProcess returns.
func StartProcess(t testing.TB, opts ...Option) *Process {
	t.Helper()
	return startOne(t, newProcess, opts)
}

func newProcess(m *member) *Process {
	p := &Process{member: m, child: &child{}}
	m.run = p.child
	return p
}

// Kill ends the process with SIGKILL, and returns when it is gone. Its data stays for Start.
func (p *Process) Kill() { p.halt(atOnce) }

// Freeze stops the process with SIGSTOP: its connections stay open, and nothing answers.
func (p *Process) Freeze() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running {
		p.t.Fatal("etcdtest: Freeze: not running")
	}
	if err := p.child.freeze(); err != nil {
		p.t.Fatalf("etcdtest: freeze: %v", err)
	}
}

// Thaw lets a frozen process go on.
func (p *Process) Thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running {
		p.child.thaw()
	}
}

// Requests is Server.Requests, but since the last start of the process.
func (p *Process) Requests() map[string]int { return p.counts().Requests }

// OpenStreams is Server.OpenStreams.
func (p *Process) OpenStreams(method string) int { return p.counts().Streams[method] }

// Watchers is Server.Watchers.
func (p *Process) Watchers() int { return p.counts().Watchers }

// Connections is Server.Connections.
func (p *Process) Connections() int { return p.counts().Connections }

// PID returns the process ID of the last start.
func (p *Process) PID() int { return p.child.cmd.Process.Pid }

// counts asks the child, so it must run and not be frozen.
func (p *Process) counts() counts {
	p.t.Helper()
	endpoint := p.cfg.endpoint()
	tr := &http.Transport{DisableKeepAlives: true}
	if p.cfg.TLS != nil {
		tr.TLSClientConfig = p.tlsConfig()
	} else {
		endpoint = "http://" + endpoint
	}
	client := http.Client{Transport: tr, Timeout: callTimeout}
	resp, err := client.Get(endpoint + countsPath)
	if err != nil {
		p.t.Fatalf("etcdtest: counts: %v", err)
	}
	defer resp.Body.Close()
	var n counts
	if err := json.NewDecoder(resp.Body).Decode(&n); err != nil {
		p.t.Fatalf("etcdtest: counts: %v", err)
	}
	return n
}

// child is a server in a child process.
type child struct {
	cmd    *exec.Cmd
	said   *tail
	stdin  io.Closer
	exited chan struct{}
	news   *os.File // a byte when it is open, and one when it is ready; nil from then on

	guard *exec.Cmd // kills the child where this process dies while it is frozen
	leash io.WriteCloser
}

func (c *child) open(cfg config) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	spec, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	news, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer tell.Close() // so that the child's death ends our reading

	said := &tail{}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+string(spec))
	cmd.ExtraFiles = []*os.File{tell}
	cmd.Stdout, cmd.Stderr = said, said
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		news.Close()
		return err
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	*c = child{cmd: cmd, said: said, stdin: stdin, exited: exited, news: news}
	tell.Close()
	if err := c.hear(); err != nil {
		c.stop(atOnce)
		return err
	}
	return nil
}

func (c *child) ready() error {
	if c.news == nil {
		return nil
	}
	if err := c.hear(); err != nil {
		return err
	}
	c.news.Close()
	c.news = nil
	return nil
}

func (c *child) hear() error {
	c.news.SetReadDeadline(time.Now().Add(startTimeout))
	if _, err := c.news.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("child process (does TestMain call etcdtest.RunIfChild?): %w\n%s", err, c.said)
	}
	return nil
}

func (c *child) stop(how stopping) {
	c.thaw()
	switch how {
	case gracefully:
		c.cmd.Process.Signal(syscall.SIGTERM)
	case together:
		c.cmd.Process.Signal(syscall.SIGINT)
	case atOnce:
		c.cmd.Process.Kill()
	}
	select {
	case <-c.exited:
	case <-time.After(startTimeout):
		c.cmd.Process.Kill()
		<-c.exited
	}
	c.stdin.Close()
	if c.news != nil {
		c.news.Close()
		c.news = nil
	}
}

func (c *child) freeze() error {
	if c.guard != nil {
		return nil
	}
	guard := exec.Command("sh", "-c", fmt.Sprintf("read thawed || kill -KILL %d", c.cmd.Process.Pid))
	leash, err := guard.StdinPipe()
	if err != nil {
		return err
	}
	if err := guard.Start(); err != nil {
		return err
	}
	c.guard, c.leash = guard, leash
	if err := suspend(c.cmd.Process); err != nil {
		c.thaw()
		return err
	}
	return nil
}

func (c *child) thaw() {
	if c.guard == nil {
		return
	}
	io.WriteString(c.leash, "\n")
	c.guard.Wait()
	c.guard, c.leash = nil, nil
	if err := resume(c.cmd.Process); err != nil {
		panic(err)
	}
}

// tail is what a child has said: shown at once with ETCDTEST_LOG, else kept for an error.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *tail) Write(p []byte) (int, error) {
	if os.Getenv("ETCDTEST_LOG") != "" {
		return os.Stderr.Write(p)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.buf.Len() < 64<<10 {
		o.buf.Write(p)
	}
	return len(p), nil
}

func (o *tail) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.TrimSpace(o.buf.String())
}
