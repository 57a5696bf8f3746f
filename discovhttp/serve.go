package discovhttp

import (
	"net/http"

	"github.com/discov-go/discov"
)

// New returns a Handler that shows no Publishers yet.
func New(opts ...Option) *Handler {
	h := &Handler{routes: http.NewServeMux()}
	for _, opt := range opts {
		opt(h)
	}
	h.routes.HandleFunc("GET /{$}", h.servePage)
	h.routes.HandleFunc("GET /status.json", h.serveJSON)
	h.routes.HandleFunc("GET /readyz", h.serveReadiness)
	if h.authorize != nil {
		ours := http.NewCrossOriginProtection()
		h.routes.Handle("POST /pause", ours.Handler(h.control((*discov.Publisher).PauseContext)))
		h.routes.Handle("POST /resume", ours.Handler(h.control((*discov.Publisher).ResumeContext)))
	}
	return h
}

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Referrer-Policy", "same-origin")
	header.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	h.routes.ServeHTTP(w, r)
}
