// Package arch holds the library to the directions of its imports, and of what its files name.
package arch

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/discov-go/discov"

// imports is all that each package of the library imports of the others. Imports run downwards only; who adds one has a
// reason, and tells it in docs/design.md.
var imports = map[string]string{
	"":                 "internal/auth internal/backoff internal/conn internal/etcd",
	"internal/conn":    "internal/auth internal/backoff internal/etcd internal/stream",
	"internal/stream":  "internal/backoff internal/etcd",
	"internal/auth":    "internal/backoff internal/etcd",
	"internal/etcd":    "",
	"internal/backoff": "",
	"advertise":        "",
	"discovhttp":       "",
	"discovprom":       "internal/conn",
}

func TestPackagesImportWhatTheDesignDraws(t *testing.T) {
	t.Parallel()
	for name, want := range imports {
		var got []string
		for _, path := range list(t, "{{range .Imports}}{{.}}\n{{end}}", name) {
			if ours, ok := strings.CutPrefix(path, module+"/"); ok {
				got = append(got, ours)
			}
		}
		require.Equal(t, want, strings.Join(got, " "), "imports of %q", name)
	}
}

func TestEveryPackageOfTheLibraryIsDrawn(t *testing.T) {
	t.Parallel()
	for _, path := range list(t, "{{join .Deps \"\\n\"}}", "") {
		if ours, ok := strings.CutPrefix(path, module+"/"); ok {
			require.Contains(t, imports, ours)
		}
	}
}

// list returns the lines that go list writes of a package.
func list(t *testing.T, format, name string) []string {
	t.Helper()
	return strings.Fields(string(goList(t, "-f", format, pathOf(name))))
}

func goList(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
	require.NoError(t, err)
	return out
}

// pathOf returns the import path of a package of the library.
func pathOf(name string) string { return strings.TrimSuffix(module+"/"+name, "/") }
