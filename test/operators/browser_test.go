package operators_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/discov-go/discov"
	"github.com/discov-go/discov/discovhttp"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
)

// A browser is a real one, without a window.
type browser struct {
	t    *testing.T
	ctx  context.Context
	site string
}

func newBrowser(t *testing.T, site string) *browser {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.WindowSize(1040, 620)) // root has no sandbox
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	require.NoError(t, chromedp.Do(ctx)) // the first one starts it, and its context ends it
	return &browser{t, ctx, site}
}

func (b *browser) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	require.NoError(b.t, chromedp.Do(ctx, actions...))
}

// text is what a person reads, empty where the page is just being loaded anew.
func (b *browser) text(selector chromedp.CSS) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, time.Second)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Text(selector))
	if err != nil {
		return ""
	}
	return text
}

// waitFor waits until a person reads that, without doing anything.
func (b *browser) waitFor(selector chromedp.CSS, text string) {
	b.t.Helper()
	etcdtest.RequireSoon(b.t, patience, func() bool {
		time.Sleep(100 * time.Millisecond) // a person would not look more often
		return strings.Contains(b.text(selector), text)
	}, "%q at %s", text, selector)
}

// press presses a button of the page as it was when it was held, and looks at the page again.
func (b *browser) press(button string) {
	b.t.Helper()
	b.do(chromedp.Navigate(b.site+"?hold"), chromedp.Click(chromedp.CSS(`button[formaction="`+button+`"]`)))
}

func TestAPersonSeesAnOutageComeAndGo(t *testing.T) {
	etcd := etcdtest.StartProcess(t, etcdtest.QuickTicks())
	page := discovhttp.New(discovhttp.WithControl(func(*http.Request) bool { return true }))
	mux := http.NewServeMux()
	mux.Handle("/discov/", http.StripPrefix("/discov", page))
	site := httptest.NewServer(mux)
	defer site.Close()
	pub := discov.NewPublisher(etcd.Endpoints(), "user.rpc", "10.0.0.7:8080", page.Show, discov.WithId(7),
		discov.WithLogger(slog.New(slog.DiscardHandler)))
	defer pub.Stop()
	require.NoError(t, pub.KeepAlive())

	b := newBrowser(t, site.URL+"/discov/")
	b.do(chromedp.Navigate(b.site))
	b.waitFor("h2", "user.rpc/7")
	b.waitFor("header .state", "published for")
	b.waitFor("h1", "Ready")
	b.waitFor("dl", "10.0.0.7:8080")
	b.waitFor("dl", "none")

	etcd.Kill()
	b.waitFor("header .state", "registering for")
	b.waitFor("h1", "Ready") // an outage of etcd makes no instance unready
	b.waitFor("dl", "connection refused")
	time.Sleep(3 * time.Second) // so that the outage is a part of the timeline that can be seen
	etcd.Start()
	b.waitFor("header .state", "published for")
	b.waitFor("dl", "none")

	b.press("pause")
	b.waitFor("header .state", "paused for")
	b.waitFor("h1", "Not ready")
	require.Equal(t, discov.StatePaused, pub.Status().State)
	b.press("resume")
	b.waitFor("header .state", "published for")

	b.do(chromedp.Navigate(b.site+"?hold"), chromedp.Click(chromedp.CSS("summary")))
	for _, state := range []string{"registering", "published", "withdrawing", "paused"} {
		b.waitFor("details", state)
	}
	width, err := chromedp.Run(b.ctx, chromedp.Evaluate[float64](
		`Math.max(...[...document.querySelectorAll("rect.registering")].map(r => r.getBoundingClientRect().width))`))
	require.NoError(t, err)
	require.Greater(t, width, 20.0, "the outage is wide enough to be seen")
	b.takePicture()
}

// takePicture writes what a person sees to the file that SCREENSHOT names, if it does.
func (b *browser) takePicture() {
	b.t.Helper()
	png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	require.NoError(b.t, err)
	require.NotEmpty(b.t, png)
	if file := os.Getenv("SCREENSHOT"); file != "" {
		require.NoError(b.t, os.WriteFile(file, png, 0o600))
	}
}
