package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/discov-go/discov/test/bench/internal/results"
)

// write returns the name of a file of the rows.
func write(t *testing.T, rows ...results.Row) string {
	t.Helper()
	var text strings.Builder
	for _, r := range rows {
		require.NoError(t, r.Write(&text))
	}
	name := filepath.Join(t.TempDir(), "rows.json")
	require.NoError(t, os.WriteFile(name, []byte(text.String()), 0o600))
	return name
}

func TestThePictureShowsTheMediansOfTheBurst(t *testing.T) {
	t.Parallel()
	in := write(t,
		results.Row{Kind: results.Raw, Size: 20, Shape: results.Burst, Brief: true, RegisterMS: 321},
		results.Row{Kind: results.Discov, Size: 20, Shape: results.Burst, Brief: true, RegisterMS: 654},
		results.Row{Kind: results.Discov, Size: 20, Shape: results.Burst, RestEtcdCPUPercent: -0.25},
		results.Row{Kind: results.Discov, Size: 20, Shape: results.Spread, RegisterMS: 987},
	)
	out := filepath.Join(t.TempDir(), "picture.svg")
	require.NoError(t, run(in, out))
	picture, err := os.ReadFile(out)
	require.NoError(t, err)
	requireWellFormed(t, string(picture))
	for _, s := range []string{"20 registrations", "raw clientv3", "go-zero", "discov", charts[0].title, ">321<", ">654<", ">-0.250<"} {
		require.Contains(t, string(picture), s)
	}
	require.NotContains(t, string(picture), "987")
}

func requireWellFormed(t *testing.T, text string) {
	t.Helper()
	for dec := xml.NewDecoder(strings.NewReader(text)); ; {
		_, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
	}
}

func TestWhatIsMissingIsNamed(t *testing.T) {
	t.Parallel()
	require.ErrorContains(t, run("", "out"), "-in and -out")
	require.ErrorContains(t, run(filepath.Join(t.TempDir(), "none"), "out"), "-in")
	spread := write(t, results.Row{Kind: results.Raw, Size: 20, Shape: results.Spread})
	require.ErrorContains(t, run(spread, "out"), "no row of a burst")
	in := write(t, results.Row{Kind: results.Raw, Size: 20, Shape: results.Burst})
	require.ErrorContains(t, run(in, filepath.Join(t.TempDir(), "none", "out")), "-out")
}
