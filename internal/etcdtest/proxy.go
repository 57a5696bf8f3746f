package etcdtest

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

// proxyConfig is all that a proxy needs to start in a child.
type proxyConfig struct {
	Endpoints []string // of the etcd behind it
	Port      int
}

func (c *proxyConfig) endpoint() string { return fmt.Sprintf("127.0.0.1:%d", c.Port) }

// A Proxy is etcd's own grpc-proxy, without TLS, in a child process like that of a Process. It answers renewals in
// whatever order its own client hears of them, makes one watch of several for the same key, and passes over what it does
// not know. Where etcd was away for long, its client takes long to come back.
type Proxy struct {
	t     testing.TB
	cfg   proxyConfig
	child *child

	mu      sync.Mutex // one start or end at a time; guards all below
	running bool
}

// StartProxy runs a proxy in front of the endpoints, which are an etcd's without TLS. It answers when StartProxy returns.
func StartProxy(t testing.TB, endpoints []string) *Proxy {
	t.Helper()
	p := &Proxy{t: t, cfg: proxyConfig{Endpoints: slices.Clone(endpoints), Port: reservePort(t)}, child: &child{}}
	t.Cleanup(p.Kill)
	p.Start()
	return p
}

// Endpoints returns where clients reach it. It never changes.
func (p *Proxy) Endpoints() []string { return []string{p.cfg.endpoint()} }

// Start starts it again at the same address. Nothing where it runs.
func (p *Proxy) Start() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running {
		return
	}
	err := p.child.start(proxyJob, p.cfg)
	if err == nil {
		p.running = true
		err = p.child.ready()
	}
	if err != nil {
		p.t.Fatalf("etcdtest: start proxy: %v", err)
	}
}

// Kill ends it, and returns when it is gone. A grpc-proxy knows no other end. Nothing where it does not run.
func (p *Proxy) Kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running {
		p.child.stop(atOnce)
		p.running = false
	}
}

// Restart is Kill and Start.
func (p *Proxy) Restart() {
	p.t.Helper()
	p.Kill()
	p.Start()
}

// PID returns the process ID of the last start.
func (p *Proxy) PID() int { return p.child.cmd.Process.Pid }

// serveProxy is the life of a child that is a proxy, until it is told to go. The proxy ends the process where it fails.
func serveProxy(c proxyConfig, told <-chan os.Signal, news *os.File) error {
	os.Setenv("ETCD_UNSUPPORTED_ARCH", runtime.GOARCH) // it serves nobody but a test
	os.Args = []string{
		"etcd", "grpc-proxy", "start",
		"--endpoints=" + strings.Join(c.Endpoints, ","),
		"--listen-addr=" + c.endpoint(),
		"--advertise-client-url=" + c.endpoint(),
	}
	go etcdmain.Main(os.Args)
	for !responds(c.endpoint()) {
		time.Sleep(2 * time.Millisecond)
	}
	news.WriteString("or") // open and ready
	news.Close()
	<-told
	return nil
}
