package discovhttp

import (
	"slices"
	"sync"

	"github.com/discov-go/discov"
)

// kept is how many changes a timeline has.
const kept = 100

// history is the latest changes of a Publisher.
type history struct {
	mu      sync.Mutex
	changes []discov.Event
}

// note is an observer.
func (h *history) note(e discov.Event) {
	if e.From == e.To {
		return // a failure that changed nothing
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.changes) == kept {
		h.changes = slices.Delete(h.changes, 0, 1)
	}
	h.changes = append(h.changes, e)
}

// all returns the changes; never nil, so that they are an array in JSON too.
func (h *history) all() []discov.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]discov.Event{}, h.changes...)
}
