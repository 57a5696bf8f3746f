package etcdtest

import (
	"sync"
	"time"
)

// Limp stops the process for a while again and again, each time after it has run for a while, until limping is ended: by
// the function that it returns, or by the end of the test. A member that limps answers, and lags behind the others. Nothing
// else may be done to the process meanwhile.
func (p *Process) Limp(stopped, running time.Duration) (end func()) {
	p.t.Helper()
	p.Freeze() // with what ends the process, if this one dies meanwhile
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			if !pause(stopped, ended) {
				return
			}
			_ = resume(p.child.cmd.Process)
			if !pause(running, ended) {
				return
			}
			_ = suspend(p.child.cmd.Process)
		}
	}()
	end = sync.OnceFunc(func() {
		close(ended)
		<-done
		p.Thaw()
	})
	p.t.Cleanup(end)
	return end
}

// pause returns false if it was ended first.
func pause(d time.Duration, ended <-chan struct{}) bool {
	select {
	case <-time.After(d):
		return true
	case <-ended:
		return false
	}
}
