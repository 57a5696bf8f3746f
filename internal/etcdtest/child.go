package etcdtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const childEnv = "ETCDTEST_CHILD" // a job in JSON makes this binary a child

// A job is what a child is for: one of these.
type job struct {
	Member *config
	Proxy  *proxyConfig
}

// Main is TestMain for packages that use StartProcess or StartProxy: it returns m.Run's exit code, or never, in a child.
func Main(m *testing.M) int {
	RunIfChild()
	return m.Run()
}

// RunIfChild makes this process an etcd or a proxy, and never returns, if StartProcess or StartProxy of another one has
// started it. Call it first in TestMain, or in main.
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
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0) // orphaned
	}()
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM, syscall.SIGINT)

	var j job
	if err := json.Unmarshal([]byte(spec), &j); err != nil {
		return err
	}
	news := os.NewFile(3, "news")
	if j.Proxy != nil {
		return serveProxy(*j.Proxy, told, news)
	}
	return serveMember(*j.Member, told, news)
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

func (c *child) open(cfg config) error { return c.start(job{Member: &cfg}) }

func (c *child) start(j job) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	spec, err := json.Marshal(j)
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
