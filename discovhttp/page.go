package discovhttp

import (
	"bytes"
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
	Number     int
	Configured string // the key, before it is known whole
	Ready      bool
	Status     discov.Status
	For        time.Duration // how long it has been in its state
	Stats      discov.Stats
	Timeline   timeline
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
	var v view
	for s := discov.StateIdle; s <= discov.StateStopped; s++ {
		v.States = append(v.States, s)
	}
	all := h.all()
	v.Ready = len(all) > 0
	for _, s := range all {
		status, changes := s.pub.Status(), s.history.all()
		now := time.Now() // after all that is shown
		one := publisherView{
			Number:     s.number,
			Configured: s.pub.Key(),
			Ready:      h.isReady(s.pub),
			Status:     status,
			Stats:      s.pub.Stats(),
			Timeline:   newTimeline(changes, now),
		}
		if !status.Since.IsZero() {
			one.For = now.Sub(status.Since)
		}
		v.Ready = v.Ready && one.Ready
		v.Publishers = append(v.Publishers, one)
	}
	v.Now = time.Now()
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

// publisherJSON is a Publisher for programs.
type publisherJSON struct {
	Publisher int            `json:"publisher"` // the number that /pause and /resume want
	Ready     bool           `json:"ready"`
	Status    discov.Status  `json:"status"`
	Stats     discov.Stats   `json:"stats"`
	Changes   []discov.Event `json:"changes"`
}

func (h *Handler) serveJSON(w http.ResponseWriter, _ *http.Request) {
	all := h.all()
	answer := struct {
		Ready      bool            `json:"ready"`
		Publishers []publisherJSON `json:"publishers"`
	}{len(all) > 0, []publisherJSON{}}
	for _, s := range all {
		one := publisherJSON{s.number, h.isReady(s.pub), s.pub.Status(), s.pub.Stats(), slices.Concat([]discov.Event{}, s.history.all())}
		answer.Ready = answer.Ready && one.Ready
		answer.Publishers = append(answer.Publishers, one)
	}
	text, err := json.MarshalIndent(answer, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(text, '\n')) // who does not read it is gone
}
