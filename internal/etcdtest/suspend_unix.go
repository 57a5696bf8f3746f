//go:build unix

package etcdtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// suspend stops a process, and returns when it has stopped.
func suspend(p *os.Process) error {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for deadline := time.Now().Add(callTimeout); !stopped(p.Pid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return errors.New("it goes on")
		}
	}
	return nil
}

// resume lets it go on. Nothing where it has ended.
func resume(p *os.Process) error {
	if err := p.Signal(syscall.SIGCONT); !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// stopped reports whether every thread of a process has stopped, which takes a moment after SIGSTOP. Without /proc it
// can't tell, and takes it for granted.
func stopped(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, name := range threads {
		stat, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		if i := bytes.LastIndex(stat, []byte(") ")); i < 0 || !bytes.HasPrefix(stat[i+2:], []byte("T")) {
			return false
		}
	}
	return true
}
