package conn

import (
	"sync"
	"sync/atomic"
	"time"
)

// history knows etcd's revision, to notice that it was wiped or restored. Only what is linearizable tells it for sure: a
// member that lags behind names an older one in other answers.
type history struct {
	wentBack func() // hears that etcd went back

	rev atomic.Int64 // the latest that is known for sure

	mu    sync.Mutex
	asked time.Time // when it was found out last
}

func (h *history) latest() int64 { return h.rev.Load() }

// note takes the revision of a linearizable answer to a request that was made when the latest one was before.
func (h *history) note(before, rev int64) {
	for {
		latest := h.rev.Load()
		wentBack := rev < before && latest >= before
		if !wentBack && rev <= latest {
			return
		}
		if h.rev.CompareAndSwap(latest, rev) {
			if wentBack {
				h.wentBack()
			}
			return
		}
	}
}

// isDoubtedBy reports whether any answer's revision is a reason to find out whether etcd went back, now.
func (h *history) isDoubtedBy(rev int64) bool {
	if rev == 0 || rev >= h.latest() {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.asked) < historyEvery {
		return false
	}
	h.asked = time.Now()
	return true
}
