package discovhttp

import (
	"fmt"
	"net/http"
	"time"

	"github.com/discov-go/discov"
)

// serveReadiness tells a probe, and who reads its events why.
func (h *Handler) serveReadiness(w http.ResponseWriter, _ *http.Request) {
	all := h.all()
	if len(all) == 0 {
		http.Error(w, "no publisher is shown", http.StatusServiceUnavailable)
		return
	}
	for _, s := range all {
		if !h.isReady(s.pub.Status(), s.pub.Stats()) {
			http.Error(w, s.pub.String(), http.StatusServiceUnavailable)
			return
		}
	}
	_, _ = fmt.Fprintln(w, "ready") // who does not read it is gone
}

// isReady reports whether a Publisher is ready, as WithStrictReadiness says.
func (h *Handler) isReady(status discov.Status, stats discov.Stats) bool {
	if h.strict {
		return status.State == discov.StatePublished && time.Now().Before(status.Until)
	}
	switch status.State {
	case discov.StateRegistering, discov.StatePublished, discov.StateConflict:
		return stats.Registrations > 0
	default:
		return false
	}
}
