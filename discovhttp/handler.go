// Package discovhttp shows Publishers to a person with a browser, and tells a probe whether they are ready.
//
//	page := discovhttp.New()
//	pub := discov.NewPublisher(endpoints, "user.rpc", addr, page.Show)
//	admin.Handle("/discov/", http.StripPrefix("/discov", page))
//
// It serves, below where it is mounted:
//
//   - /: a page with the state, key, value, lease, last error and counters of each Publisher, and a timeline of its last
//     hundred changes. It needs no script, and is loaded anew every 5 s.
//   - /status.json: the same for programs.
//   - /readyz: 200 if all Publishers are ready, else 503; see [WithStrictReadiness].
//   - /pause and /resume, with POST: see [WithControl].
//
// Serve it where only your operators can read it: it tells the addresses, keys and errors of etcd, but no password.
package discovhttp

import (
	"net/http"
	"slices"
	"strconv"
	"sync"

	"github.com/discov-go/discov"
)

// Option customises a Handler.
type Option func(*Handler)

// WithStrictReadiness makes /readyz answer 200 only while every key is in etcd for certain. Then an outage of etcd makes every
// instance of every service unready at once, although all can serve. Defaults to off: a Publisher is ready from its first
// registration on, but not while it is paused or unhealthy, nor from when it is being stopped; trouble with etcd changes nothing.
//
// Never use either as a liveness probe: a restart mends nothing that a Publisher does not mend, but for a changed password, and costs
// the calls under way.
func WithStrictReadiness() Option { return func(h *Handler) { h.strict = true } }

// WithControl lets those whom authorize lets through pause and resume a Publisher, with buttons on the page, or by POST to
// /pause and /resume with the form field publisher, its number in /status.json. Requests that a browser makes for another
// site are refused besides. Let authorize look for a credential, never for an address alone: a page elsewhere may have this host's
// name resolve to it. To have a browser ask for a password, answer 401 before the handler, as the example does. It panics if authorize is
// nil. Defaults to none: the two paths do not exist.
func WithControl(authorize func(*http.Request) bool) Option {
	if authorize == nil {
		panic("discovhttp: WithControl(nil)")
	}
	return func(h *Handler) { h.authorize = authorize }
}

// Handler is an [http.Handler] that serves the page. Make it with New.
type Handler struct {
	routes    *http.ServeMux
	strict    bool
	authorize func(*http.Request) bool // nil where nobody may change anything

	mu    sync.Mutex
	shown []*shown
	last  int // the number that was given last
}

// shown is a Publisher on the page.
type shown struct {
	number  int
	pub     *discov.Publisher
	history history
}

// Show adds a Publisher. It is a [discov.PubOption], and has no other use: give page.Show to NewPublisher.
func (h *Handler) Show(pub *discov.Publisher) {
	s := &shown{pub: pub}
	discov.WithObserver(s.history.note)(pub)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last++
	s.number = h.last
	h.shown = append(h.shown, s)
}

// Remove removes a Publisher, as one that was stopped for good while the process goes on.
func (h *Handler) Remove(pub *discov.Publisher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.shown = slices.DeleteFunc(h.shown, func(s *shown) bool { return s.pub == pub })
}

// all returns the Publishers on the page.
func (h *Handler) all() []*shown {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.shown)
}

// find returns the Publisher with a number, or nil.
func (h *Handler) find(number string) *shown {
	for _, s := range h.all() {
		if strconv.Itoa(s.number) == number {
			return s
		}
	}
	return nil
}
