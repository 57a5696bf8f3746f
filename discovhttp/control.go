package discovhttp

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/discov-go/discov"
)

// mostForm bounds the body of a request, in bytes.
const mostForm = 4096

// control serves requests that change a Publisher. What was begun is done to the end, also where the browser goes away.
func (h *Handler) control(change func(*discov.Publisher, context.Context) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !h.authorize(r) {
			http.Error(w, "not authorized", http.StatusForbidden)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, mostForm)
		if err := r.ParseForm(); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		number := r.PostForm.Get("publisher")
		one := h.find(number)
		if one == nil {
			http.Error(w, fmt.Sprintf("no publisher %q: want a number of /status.json", number), http.StatusNotFound)
			return
		}
		if err := change(one.pub, context.WithoutCancel(r.Context())); err != nil {
			http.Error(w, err.Error(), statusOf(err))
			return
		}
		w.Header().Set("Location", "./") // http.Redirect would make it absolute, without what StripPrefix has stripped
		w.WriteHeader(http.StatusSeeOther)
	})
}

func statusOf(err error) int {
	if errors.Is(err, discov.ErrStopped) || errors.Is(err, discov.ErrSuperseded) || errors.Is(err, discov.ErrConflict) {
		return http.StatusConflict
	}
	return http.StatusBadGateway // etcd has not done it in time
}
