package discov

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// logged are the functions that take a line of the log.
var logged = map[string]bool{"Warn": true, "Log": true, "write": true, "writeTrouble": true, "begin": true, "warn": true, "warnAside": true}

// logLines returns the texts of the lines that a file may log. Of one that is put together, it returns the parts.
func logLines(t *testing.T, file string) (texts []string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	require.NoError(t, err)
	ast.Inspect(parsed, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		method, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || !logged[method.Sel.Name] {
			return true
		}
		for _, arg := range call.Args {
			parts := literals(arg)
			if len(parts) > 0 && strings.HasPrefix(parts[0], "discov: ") {
				parts[0] = strings.TrimPrefix(parts[0], "discov: ")
				texts = append(texts, parts...)
			}
		}
		return true
	})
	return texts
}

// literals returns the texts of a sum.
func literals(e ast.Expr) []string {
	switch e := e.(type) {
	case *ast.BinaryExpr:
		return append(literals(e.X), literals(e.Y)...)
	case *ast.BasicLit:
		if text, err := strconv.Unquote(e.Value); err == nil {
			return []string{text}
		}
	}
	return nil
}

func TestThePagersTableHasEveryLineOfTheLog(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, table, ok := strings.Cut(string(readme), "## When the pager rings")
	require.True(t, ok)
	table, _, _ = strings.Cut(table, "\n## ")
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	var texts []string
	for _, file := range files {
		if !strings.HasSuffix(file, "_test.go") {
			texts = append(texts, logLines(t, file)...)
		}
	}
	require.GreaterOrEqual(t, len(texts), 15, "the lines are found")
	for _, state := range []State{StateIdle, StateRegistering, StateWithdrawing, StatePaused, StateStopped} {
		texts = append(texts, state.String()) // which log writes as they are
	}
	for _, text := range texts {
		require.Contains(t, table, strings.TrimSpace(text))
	}
}

// TestLinksOfTheDocsLeadSomewhere: to a file, and to a heading of it.
func TestLinksOfTheDocsLeadSomewhere(t *testing.T) {
	pages, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	own, err := filepath.Glob("*.md")
	require.NoError(t, err)
	for _, page := range append(pages, own...) {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, rest := range strings.Split(string(text), "](")[1:] {
			target, _, _ := strings.Cut(rest, ")")
			file, heading, _ := strings.Cut(target, "#")
			if strings.Contains(target, "://") {
				continue
			}
			if file == "" {
				file = page
			} else {
				file = filepath.Join(filepath.Dir(page), file)
			}
			require.FileExists(t, orFolder(file), "%s: %s", page, target)
			if heading != "" {
				text, err := os.ReadFile(file) //nolint:gosec // a page of ours
				require.NoError(t, err)
				require.Contains(t, anchors(string(text)), heading, "%s: %s", page, target)
			}
		}
	}
}

// orFolder returns a file that is there if file is a folder that is.
func orFolder(file string) string {
	if entries, err := os.ReadDir(file); err == nil && len(entries) > 0 {
		return filepath.Join(file, entries[0].Name())
	}
	return file
}

// anchors are those that GitHub gives to headings.
func anchors(text string) (all []string) {
	for line := range strings.Lines(text) {
		if heading := strings.TrimLeft(line, "#"); heading != line && strings.HasPrefix(heading, " ") {
			anchor := strings.ToLower(strings.TrimSpace(heading))
			anchor = strings.NewReplacer(" ", "-", "'", "", ",", "", ".", "").Replace(anchor)
			all = append(all, anchor)
		}
	}
	return all
}
