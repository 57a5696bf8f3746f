package arch

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// circles is the files of each package that name each other, as this system builds it, without its tests. An option is a
// function that fills a Publisher, as go-zero's.
var circles = map[string][]string{
	"": {"options.go", "publisher.go"},
}

func TestFilesNameOnlyFilesBelowThem(t *testing.T) {
	t.Parallel()
	all := compile(t)
	for name := range imports {
		t.Run("."+name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, circles[name], all.arrows(t, pathOf(name)).circle())
		})
	}
}

// built is a package as go list knows it.
type built struct {
	ImportPath, Dir, Export string
	GoFiles                 []string
}

// program is the library's packages and all that they import, by path.
type program map[string]built

func compile(t *testing.T) program {
	t.Helper()
	args := []string{"-export", "-deps", "-json=ImportPath,Dir,Export,GoFiles"}
	for name := range imports {
		args = append(args, pathOf(name))
	}
	all := program{}
	for list := json.NewDecoder(bytes.NewReader(goList(t, args...))); list.More(); {
		var p built
		require.NoError(t, list.Decode(&p))
		all[p.ImportPath] = p
	}
	return all
}

// graph is which files each file names.
type graph map[string]map[string]bool

// arrows returns which files of a package name what others declare: a type, a function, a field, a variable or a constant.
func (all program) arrows(t *testing.T, path string) graph {
	t.Helper()
	p, fset := all[path], token.NewFileSet()
	var files []*ast.File
	for _, name := range p.GoFiles {
		file, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		files = append(files, file)
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	config := types.Config{Importer: importer.ForCompiler(fset, "gc", all.open)}
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

// open opens a package as it was compiled.
func (all program) open(path string) (io.ReadCloser, error) { return os.Open(all[path].Export) }

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
