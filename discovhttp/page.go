package discovhttp

import (
	"bytes"
	"cmp"
	_ "embed"
	"encoding/json"
	"html/template"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/discov-go/discov"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"clock":  func(t time.Time) string { return t.Format("2006-01-02 15:04:05.000 MST") },
	"round":  round,
	"spaced": func(name string) string { return strings.ReplaceAll(name, "_", " ") },
}).Parse(pageText))

// round is a duration as a person reads it.
func round(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(time.Second)
}

// reading is a Publisher as it was read for one answer.
type reading struct {
	Number  int            `json:"publisher"` // which /pause and /resume want
	Ready   bool           `json:"ready"`
	Status  discov.Status  `json:"status"`
	Stats   discov.Stats   `json:"stats"`
	Changes []discov.Event `json:"changes"`

	configured string // the key, before it is known whole
}

// read reads all Publishers, and reports whether there are some and all are ready.
func (h *Handler) read() (ready bool, readings []reading) {
	all := h.all()
	readings = []reading{} // not null in JSON
	ready = len(all) > 0
	for _, s := range all {
		r := reading{Number: s.number, Status: s.pub.Status(), Stats: s.pub.Stats(), Changes: s.history.all(), configured: s.pub.Key()}
		r.Ready = h.isReady(r.Status, r.Stats)
		ready = ready && r.Ready
		readings = append(readings, r)
	}
	return ready, readings
}

// view is what the page shows.
type view struct {
	Now        time.Time
	Ready      bool
	Control    bool // whether there are buttons
	Held       bool // whether it stays as it is
	States     []discov.State
	Publishers []publisherView
}

// publisherView is what it shows of one Publisher.
type publisherView struct {
	reading
	Title    string
	For      time.Duration // how long it has been in its state
	Timeline timeline
}

// Newest is the changes, the latest first.
func (p publisherView) Newest() []span {
	spans := slices.Clone(p.Timeline.Spans)
	slices.Reverse(spans)
	return spans
}

// IsStopped reports whether nothing can be done with it.
func (p publisherView) IsStopped() bool { return p.Status.State == discov.StateStopped }

func (h *Handler) view() view {
	ready, readings := h.read()
	v := view{Now: time.Now(), Ready: ready} // after all that is shown
	for s := discov.StateIdle; s <= discov.StateStopped; s++ {
		v.States = append(v.States, s)
	}
	for _, r := range readings {
		one := publisherView{reading: r, Title: cmp.Or(r.Status.Key, r.configured), Timeline: newTimeline(r.Changes, v.Now)}
		if !r.Status.Since.IsZero() {
			one.For = v.Now.Sub(r.Status.Since)
		}
		v.Publishers = append(v.Publishers, one)
	}
	return v
}

func (h *Handler) servePage(w http.ResponseWriter, r *http.Request) {
	v := h.view()
	v.Control = h.authorize != nil && h.authorize(r)
	v.Held = r.URL.Query().Has("hold")
	var b bytes.Buffer
	if err := page.Execute(&b, v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(b.Bytes()) // who does not read it is gone
}

func (h *Handler) serveJSON(w http.ResponseWriter, _ *http.Request) {
	ready, readings := h.read()
	answer := struct {
		Ready      bool      `json:"ready"`
		Publishers []reading `json:"publishers"`
	}{ready, readings}
	text, err := json.MarshalIndent(answer, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(text, '\n')) // who does not read it is gone
}
