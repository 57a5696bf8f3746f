package arch

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// circles is the files of each package that name each other, as this system builds it, without its tests. An option is a function that fills a Publisher, as go-zero's.
var circles = map[string][]string{
	"": {"options.go", "publisher.go"},
}

func TestFilesNameOnlyFilesBelowThem(t *testing.T) {
	t.Parallel()
	for name := range imports {
		t.Run("."+name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, circles[name], load(t, name).arrows(t).circle())
		})
	}
}

// built is a package as go list knows it.
type built struct {
	ImportPath, Dir, Export string
	GoFiles                 []string

	exports map[string]string // the compiled packages that it imports, by path
}

func load(t *testing.T, name string) (p built) {
	t.Helper()
	path := strings.TrimSuffix(module+"/"+name, "/")
	out, err := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Dir,Export,GoFiles", path).Output()
	require.NoError(t, err)
	exports := map[string]string{}
	for list := json.NewDecoder(bytes.NewReader(out)); list.More(); {
		p = built{} // the package itself comes last
		require.NoError(t, list.Decode(&p))
		exports[p.ImportPath] = p.Export
	}
	p.exports = exports
	return p
}

// graph is which files each file names.
type graph map[string]map[string]bool

// arrows returns who names what the others declare: a type, a function, a field, a variable or a constant.
func (p built) arrows(t *testing.T) graph {
	t.Helper()
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range p.GoFiles {
		file, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		files = append(files, file)
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	config := types.Config{Importer: importer.ForCompiler(fset, "gc", p.open)}
	pkg, err := config.Check(p.ImportPath, fset, files, info)
	require.NoError(t, err)
	fileOf := func(pos token.Pos) string { return filepath.Base(fset.Position(pos).Filename) }
	g := graph{}
	for at, object := range info.Uses {
		from := fileOf(at.Pos())
		if g[from] == nil {
			g[from] = map[string]bool{}
		}
		if object.Pkg() == pkg && fileOf(object.Pos()) != from {
			g[from][fileOf(object.Pos())] = true
		}
	}
	return g
}

func (p built) open(path string) (io.ReadCloser, error) {
	name := p.exports[path]
	if name == "" {
		return nil, fmt.Errorf("%s is not compiled", path)
	}
	return os.Open(name)
}

// circle returns the files that name themselves by way of others.
func (g graph) circle() (files []string) {
	for file := range g {
		if g.reaches(file, file, map[string]bool{}) {
			files = append(files, file)
		}
	}
	slices.Sort(files)
	return files
}

// reaches reports whether a file names another one, or one that does, and so on. What was seen needs no second look.
func (g graph) reaches(from, to string, seen map[string]bool) bool {
	for next := range g[from] {
		if next == to {
			return true
		}
		if !seen[next] {
			seen[next] = true
			if g.reaches(next, to, seen) {
				return true
			}
		}
	}
	return false
}
