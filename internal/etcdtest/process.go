package etcdtest

import (
	"encoding/json"
	"net/http"
	"os"
	"syscall"
	"testing"
)

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

// serveMember is the life of a child that is a member, until it is told to go.
func serveMember(c config, told <-chan os.Signal, news *os.File) error {
	e := &embedded{counter: newCounter()}
	if err := e.open(c); err != nil {
		return err
	}
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
