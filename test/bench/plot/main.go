// Plot draws the rows of a benchmark as an SVG: for each size a row of charts, one a figure, each with a bar for raw
// clientv3, for go-zero and for discov. Bars are medians over the rounds of the burst.
//
// The picture has a background of its own, so that it is legible on a dark page as well as on a light one.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/discov-go/discov/test/bench/internal/results"
)

func main() {
	in := flag.String("in", "", "the `file` of rows that the benchmark wrote with -out")
	out := flag.String("out", "", "the `file` to write the SVG to")
	flag.Parse()
	if err := run(*in, *out); err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

func run(in, out string) error {
	if in == "" || out == "" {
		return errors.New("both -in and -out are needed")
	}
	rows, err := read(in)
	if err != nil {
		return fmt.Errorf("-in: %w", err)
	}
	picture, err := draw(rows)
	if err != nil {
		return err
	}
	if err := os.WriteFile(out, picture, 0o644); err != nil { //nolint:gosec // a picture is to be seen
		return fmt.Errorf("-out: %w", err)
	}
	return nil
}

// read returns the rows of the burst: only they are drawn.
func read(name string) (results.Rows, error) {
	file, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	all, err := results.Read(bytes.NewReader(file))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	var rows results.Rows
	for _, r := range all {
		if r.Shape == results.Burst {
			rows = append(rows, r)
		}
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("%s has no row of a burst", name)
	}
	return rows, nil
}
