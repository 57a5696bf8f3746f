package discovhttp_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/discovhttp"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const eventually = 10 * time.Second

var quiet = discov.WithLogger(slog.New(slog.DiscardHandler))

// site is a server with a page, mounted as one would be.
type site struct {
	t    *testing.T
	page *discovhttp.Handler
	*httptest.Server
}

func newSite(t *testing.T, opts ...discovhttp.Option) *site {
	t.Helper()
	page := discovhttp.New(opts...)
	mux := http.NewServeMux()
	mux.Handle("/discov/", http.StripPrefix("/discov", page))
	s := &site{t, page, httptest.NewServer(mux)}
	t.Cleanup(s.Close)
	return s
}

func (s *site) publisher(endpoints []string, opts ...discov.PubOption) *discov.Publisher {
	s.t.Helper()
	pub := discov.NewPublisher(endpoints, "user.rpc", "10.0.0.7:8080", append([]discov.PubOption{quiet, s.page.Show}, opts...)...)
	s.t.Cleanup(pub.Stop)
	return pub
}

func (s *site) published(endpoints []string, opts ...discov.PubOption) *discov.Publisher {
	s.t.Helper()
	pub := s.publisher(endpoints, opts...)
	ctx, cancel := context.WithTimeout(s.t.Context(), eventually)
	defer cancel()
	require.NoError(s.t, pub.KeepAliveContext(ctx))
	return pub
}

// ask makes a request, which change may change before.
func (s *site) ask(method, path string, form url.Values, change ...func(*http.Request)) (status int, body string) {
	s.t.Helper()
	response, body := s.answer(method, path, form, change...)
	return response.StatusCode, body
}

func (s *site) answer(method, path string, form url.Values, change ...func(*http.Request)) (response *http.Response, body string) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.URL+"/discov"+path, strings.NewReader(form.Encode()))
	require.NoError(s.t, err)
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for _, c := range change {
		c(r)
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err = client.Do(r)
	require.NoError(s.t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(s.t, err)
	require.Equal(s.t, "no-store", response.Header.Get("Cache-Control"))
	client.CloseIdleConnections()
	return response, string(text)
}

func (s *site) get(path string) (status int, body string) {
	s.t.Helper()
	return s.ask(http.MethodGet, path, nil)
}

func (s *site) requireReadiness(want int, why string) {
	s.t.Helper()
	status, body := s.get("/readyz")
	require.Equal(s.t, want, status, body)
	require.Contains(s.t, body, why)
}

// answer is what programs read.
type answer struct {
	Ready      bool `json:"ready"`
	Publishers []struct {
		Publisher int  `json:"publisher"`
		Ready     bool `json:"ready"`
		Status    struct {
			State, Key, Value, Lease, Error string
		} `json:"status"`
		Stats struct {
			Registrations int            `json:"registrations"`
			Losses        map[string]int `json:"losses"`
		} `json:"stats"`
		Changes []struct {
			From, To, Cause, Error string
			Time                   time.Time
		} `json:"changes"`
	} `json:"publishers"`
}

func (s *site) json() (a answer) {
	s.t.Helper()
	status, body := s.get("/status.json")
	require.Equal(s.t, http.StatusOK, status)
	require.NoError(s.t, json.Unmarshal([]byte(body), &a))
	return a
}

func TestThePageShowsWhatAPublisherDoes(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.QuickTicks())
	s := newSite(t)
	pub := s.published(srv.Endpoints(), discov.WithId(7))
	status, body := s.get("/")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "<h2>user.rpc/7</h2>")
	require.Contains(t, body, `<span class="state published">published for `)
	require.Contains(t, body, "10.0.0.7:8080")
	require.Contains(t, body, `<meta http-equiv="refresh" content="5">`)
	require.NotContains(t, body, "<button", "nobody may change anything")
	require.NotContains(t, body, "<script")
	require.Contains(t, body, "<dt>last error</dt><dd>none</dd>")

	s.delete(srv, "user.rpc/7")
	etcdtest.RequireSoon(t, eventually, func() bool { return pub.Stats().Registrations == 2 }, "registered again")
	etcdtest.RequireSoon(t, eventually, func() bool { return len(s.json().Publishers[0].Changes) == 4 }, "told")
	_, body = s.get("/?hold")
	require.Equal(t, 4, strings.Count(body, "<rect "), "registering, published, and both once more")
	require.Contains(t, body, "<td>the key was deleted</td>")
	require.NotContains(t, body, "http-equiv", "it is held")

	one := s.json().Publishers[0]
	require.Equal(t, 1, one.Publisher)
	require.Equal(t, "published", one.Status.State)
	require.Equal(t, 1, one.Stats.Losses["key_deleted"])
	require.Equal(t, "key_deleted", one.Changes[2].Cause)
}

func (s *site) delete(srv *etcdtest.Server, key string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), eventually)
	defer cancel()
	_, err := srv.Client(s.t).Delete(ctx, key)
	require.NoError(s.t, err)
}

func TestAPublisherIsReadyFromItsRegistrationUntilItIsWithdrawn(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.QuickTicks())
	usual, strict := newSite(t), newSite(t, discovhttp.WithStrictReadiness())
	both := func(want int, why string) {
		t.Helper()
		usual.requireReadiness(want, why)
		strict.requireReadiness(want, why)
	}
	both(http.StatusServiceUnavailable, "no publisher is shown")
	show := func(pub *discov.Publisher) { usual.page.Show(pub); strict.page.Show(pub) }
	pub := discov.NewPublisher(srv.Endpoints(), "user.rpc", "10.0.0.7:8080", quiet, show, discov.WithId(7), discov.WithTTL(2*time.Second))
	defer pub.Stop()
	both(http.StatusServiceUnavailable, "user.rpc/7 idle")
	require.NoError(t, pub.KeepAlive())
	both(http.StatusOK, "ready")

	srv.Stop()
	etcdtest.RequireSoon(t, eventually, func() bool { return pub.Status().State == discov.StateRegistering }, "the outage is noticed")
	usual.requireReadiness(http.StatusOK, "ready")
	strict.requireReadiness(http.StatusServiceUnavailable, "user.rpc/7 registering")
	srv.Start()
	etcdtest.RequireSoon(t, eventually, func() bool { return pub.Status().State == discov.StatePublished }, "back")
	usual.requireReadiness(http.StatusOK, "ready")
	etcdtest.RequireSoon(t, eventually, func() bool {
		status, _ := strict.get("/readyz")
		return status == http.StatusOK
	}, "ready again")

	require.NoError(t, pub.PauseContext(t.Context()))
	both(http.StatusServiceUnavailable, "user.rpc/7 paused")
	require.NoError(t, pub.ResumeContext(t.Context()))
	usual.requireReadiness(http.StatusOK, "ready")
	require.NoError(t, pub.StopContext(t.Context()))
	both(http.StatusServiceUnavailable, "user.rpc/7 stopped")
	for _, s := range []*site{usual, strict} {
		s.page.Remove(pub)
	}
	both(http.StatusServiceUnavailable, "no publisher is shown")
}

func TestOneThatIsNotReadyMakesTheProcessUnready(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.QuickTicks())
	s := newSite(t)
	s.published(srv.Endpoints(), discov.WithId(1))
	s.requireReadiness(http.StatusOK, "ready")
	s.publisher(srv.Endpoints(), discov.WithId(2))
	s.requireReadiness(http.StatusServiceUnavailable, "user.rpc/2 idle")
	a := s.json()
	require.False(t, a.Ready)
	require.True(t, a.Publishers[0].Ready)
	require.False(t, a.Publishers[1].Ready)
}

func TestWhoMayPausesAndResumes(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.QuickTicks())
	s := newSite(t, discovhttp.WithControl(func(r *http.Request) bool { return r.Header.Get("Authorization") == "Bearer operator" }))
	pub := s.published(srv.Endpoints(), discov.WithId(7))
	operator := func(r *http.Request) { r.Header.Set("Authorization", "Bearer operator") }
	from := func(site string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", site) }
	}
	one := url.Values{"publisher": {"1"}}

	status, body := s.get("/")
	require.Equal(t, http.StatusOK, status)
	require.NotContains(t, body, "<button")
	_, body = s.ask(http.MethodGet, "/", nil, operator)
	require.Contains(t, body, `<button formaction="pause"`)

	for name, refused := range map[string]struct {
		status int
		method string
		form   url.Values
		change []func(*http.Request)
	}{
		"a stranger":         {http.StatusForbidden, http.MethodPost, one, nil},
		"from another site":  {http.StatusForbidden, http.MethodPost, one, []func(*http.Request){operator, from("cross-site")}},
		"a link":             {http.StatusMethodNotAllowed, http.MethodGet, nil, []func(*http.Request){operator}},
		"none of that kind":  {http.StatusNotFound, http.MethodPost, url.Values{"publisher": {"2"}}, []func(*http.Request){operator}},
		"none at all":        {http.StatusNotFound, http.MethodPost, url.Values{}, []func(*http.Request){operator}},
		"a body without end": {http.StatusBadRequest, http.MethodPost, url.Values{"x": {strings.Repeat("x", 10_000)}, "publisher": {"1"}}, []func(*http.Request){operator}},
	} {
		status, body := s.ask(refused.method, "/pause", refused.form, refused.change...)
		require.Equal(t, refused.status, status, "%s: %s", name, body)
		require.Equal(t, discov.StatePublished, pub.Status().State)
	}

	response, _ := s.answer(http.MethodPost, "/pause", one, operator, from("same-origin"))
	require.Equal(t, http.StatusSeeOther, response.StatusCode)
	back, err := response.Location()
	require.NoError(t, err)
	require.Equal(t, "/discov/", back.Path, "where the page is mounted")
	require.Equal(t, discov.StatePaused, pub.Status().State)
	status, _ = s.ask(http.MethodPost, "/resume", one, operator)
	require.Equal(t, http.StatusSeeOther, status)
	require.Equal(t, discov.StatePublished, pub.Status().State)

	require.NoError(t, pub.StopContext(t.Context()))
	_, body = s.ask(http.MethodGet, "/", nil, operator)
	require.NotContains(t, body, "<button", "nothing can be done with it")
	status, body = s.ask(http.MethodPost, "/resume", one, operator)
	require.Equal(t, http.StatusConflict, status)
	require.Contains(t, body, "discov: resume user.rpc: stopped")
}

func TestWithoutControlNothingCanBeChanged(t *testing.T) {
	s := newSite(t)
	s.publisher(nil)
	for _, path := range []string{"/pause", "/resume"} {
		status, _ := s.ask(http.MethodPost, path, url.Values{"publisher": {"1"}})
		require.Equal(t, http.StatusNotFound, status)
	}
	require.PanicsWithValue(t, "discovhttp: WithControl(nil)", func() { discovhttp.WithControl(nil) })
}

func TestWhatIsShownIsNeverMarkup(t *testing.T) {
	s := newSite(t)
	pub := discov.NewPublisher(nil, `<b>key</b>`, `"><script>alert(1)</script>`, quiet, s.page.Show)
	defer pub.Stop()
	_, body := s.get("/")
	require.NotContains(t, body, "<script>")
	require.NotContains(t, body, "<b>key")
	require.Contains(t, body, "&lt;b&gt;key")
}

func TestATimelineKeepsTheLastHundredChanges(t *testing.T) {
	s := newSite(t)
	pub := s.publisher(nil)
	for range 60 { // before KeepAlive: idle, paused, idle
		require.NoError(t, pub.PauseContext(t.Context()))
		require.NoError(t, pub.ResumeContext(t.Context()))
	}
	etcdtest.RequireSoon(t, eventually, func() bool {
		changes := s.json().Publishers[0].Changes
		return len(changes) == 100 && changes[99].To == "idle"
	}, "the last hundred")
	_, body := s.get("/")
	require.Equal(t, 100, strings.Count(body, "<rect "))
}

func TestAPageWithoutPublishersSaysHowToHaveSome(t *testing.T) {
	s := newSite(t)
	status, body := s.get("/")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "No publisher is shown here")
	require.Empty(t, s.json().Publishers)
	status, _ = s.get("/nothing")
	require.Equal(t, http.StatusNotFound, status)
}
