package etcdtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

const childEnv = "ETCDTEST_CHILD" // A job is what a child is for, and with which configuration.
type job struct {
	Kind   string
	Config json.RawMessage
}

// The kinds of a job.
const (
	memberJob = "member"
	proxyJob  = "proxy"
)

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

func (c *child) open(cfg config) error { return c.start(memberJob, cfg) }

func (c *child) start(kind string, config any) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	told, err := json.Marshal(config)
	if err != nil {
		return err
	}
	spec, err := json.Marshal(job{kind, told})
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
		if errors.Is(err, io.EOF) {
			select {
			case <-c.exited: // from then on, all that it said is there
			case <-time.After(startTimeout):
			}
		}
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
