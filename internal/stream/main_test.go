package stream

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// soon waits until cond holds, for at most within, and returns how long that took.
func soon(t *testing.T, within time.Duration, cond func() bool, what string) time.Duration {
	t.Helper()
	began := time.Now()
	for !cond() {
		if time.Since(began) >= within {
			t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(began)
}

// shuffle puts ids into another order, which is none of the usual ones.
func shuffle(ids []int64) {
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
}

// counted counts the streams of a server.
type counted struct {
	mu                 sync.Mutex
	opened, open, most int
}

// enter counts a stream, which is the nth, and ends with leave.
func (c *counted) enter() (n int, leave func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opened++
	c.open++
	c.most = max(c.most, c.open)
	return c.opened, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.open--
	}
}

// streams returns how many were opened, how many are open, and how many were at most.
func (c *counted) streams() (opened, open, most int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.opened, c.open, c.most
}
