package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	etcdtest.RunIfChild()
	os.Exit(m.Run())
}

func requireXML(t *testing.T, text string) {
	t.Helper()
	for d := xml.NewDecoder(strings.NewReader(text)); ; {
		if _, err := d.Token(); err != nil {
			require.True(t, errors.Is(err, io.EOF), "%v", err)
			return
		}
	}
}

func TestWhatWasAbsentIsDrawn(t *testing.T) {
	svg, err := draw(timeline{
		lasts:  time.Minute,
		faults: []fault{{part: part{10 * time.Second, 20 * time.Second}, name: "etcd is down", down: true}},
		rows: []row{
			{name: "go-zero", absent: []part{{20 * time.Second, 30 * time.Second}}},
			{name: "discov"},
		},
	})
	require.NoError(t, err)
	requireXML(t, string(svg))
	require.Contains(t, string(svg), ">absent for 10s<")
	require.Contains(t, string(svg), ">never absent<")
	require.Contains(t, string(svg), ">etcd is down<")
	require.Equal(t, 2, strings.Count(string(svg), `fill="#d1242f"`), "one part, and the legend")
}

func TestARunIsDrawn(t *testing.T) {
	out := filepath.Join(t.TempDir(), "timeline.svg")
	require.NoError(t, run(out, 2*time.Second))
	svg, err := os.ReadFile(out)
	require.NoError(t, err)
	requireXML(t, string(svg))
	for _, what := range []string{"go-zero", "discov", "etcd is down", "etcd is wiped", "the connections go silent"} {
		require.Contains(t, string(svg), what)
	}
	require.ErrorContains(t, run("", time.Second), "-out is needed")
}
