// Package output keeps what the programs under test write.
package output

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long a test waits for what must be written.
const patience = 30 * time.Second

// Text is what a program has written so far. The zero value is ready to use, also while the program writes.
type Text struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (o *Text) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

// String returns all of it.
func (o *Text) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// WaitFor waits until a text is in it.
func (o *Text) WaitFor(t testing.TB, text string) {
	t.Helper()
	for end := time.Now().Add(patience); !strings.Contains(o.String(), text); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %q in what was written:\n%s", text, o)
		}
	}
}
