package etcdtest

import (
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// A Binary is a member that is another program: an etcd of another age.
type Binary struct{ *member }

// StartBinary runs the program at path as one member, ready for requests when StartBinary returns. WithTokenTTL does not
// reach it.
func StartBinary(t testing.TB, path string, opts ...Option) *Binary {
	t.Helper()
	return startOne(t, func(m *member) *Binary {
		m.run = &binary{path: path}
		return &Binary{m}
	}, opts)
}

// binary is the program while it runs.
type binary struct {
	path   string
	cfg    config
	cmd    *exec.Cmd
	said   *tail
	exited chan struct{}
}

func (b *binary) open(c config) error {
	b.cfg, b.said, b.exited = c, &tail{}, make(chan struct{})
	b.cmd = exec.Command(b.path, c.flags()...)
	b.cmd.Env = []string{} // its flags say all
	b.cmd.Stdout, b.cmd.Stderr = b.said, b.said
	if err := b.cmd.Start(); err != nil {
		return err
	}
	go func() {
		b.cmd.Wait()
		close(b.exited)
	}()
	return nil
}

// flags are the command line of an etcd, of those that all of them know.
func (c *config) flags() []string {
	scheme := "http"
	if c.TLS != nil {
		scheme = "https"
	}
	client := fmt.Sprintf("%s://127.0.0.1:%d", scheme, c.ClientPort)
	flags := []string{
		"--name", c.Name, "--data-dir", c.Dir,
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", c.peerURL(), "--initial-advertise-peer-urls", c.peerURL(),
		"--initial-cluster", c.Cluster, "--initial-cluster-token", clusterToken,
		"--heartbeat-interval", fmt.Sprint(c.TickMs), "--election-timeout", fmt.Sprint(c.ElectionMs),
		"--bcrypt-cost", fmt.Sprint(c.BcryptCost),
	}
	if c.TLS != nil {
		flags = append(flags, "--client-cert-auth",
			"--cert-file", c.TLS.CertFile, "--key-file", c.TLS.KeyFile, "--trusted-ca-file", c.TLS.CAFile)
	}
	return flags
}

func (b *binary) ready() error {
	late := time.After(startTimeout)
	for !greets(b.cfg) {
		select {
		case <-b.exited:
			return fmt.Errorf("%s has ended:\n%s", b.path, b.said)
		case <-late:
			return errors.New("not serving in time")
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

func (b *binary) stop(how stopping) {
	if how == atOnce {
		b.cmd.Process.Kill()
	} else {
		b.cmd.Process.Signal(syscall.SIGTERM)
	}
	select {
	case <-b.exited:
	case <-time.After(startTimeout):
		b.cmd.Process.Kill()
		<-b.exited
	}
}
