package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/discov-go/discov/test/bench/internal/results"
)

// bench makes all trials, writes their rows as they come and their table to out, and says on progress what it is at.
func bench(ctx context.Context, s settings, out, progress io.Writer) (err error) {
	file := io.Discard
	if s.out != "" {
		f, err := os.Create(s.out)
		if err != nil {
			return fmt.Errorf("-out: %w", err)
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		file = f
	}
	var rows results.Rows
	for round := range s.rounds {
		found, err := s.round(ctx, round, file, progress)
		if err != nil {
			return err
		}
		rows = append(rows, found...)
	}
	fmt.Fprintf(out, "Medians; -rounds %d -steady %v -at-once %d\n", s.rounds, s.steady, s.atOnce)
	return rows.Table(out)
}

// round makes one trial of each kind, size and shape.
func (s settings) round(ctx context.Context, round int, file, progress io.Writer) (results.Rows, error) {
	var rows results.Rows
	for _, what := range s.plan(round) {
		fmt.Fprintf(progress, "round %d of %d: %s of %d, %s\n", round+1, s.rounds, what.Shape, what.Size, what.Kind)
		t := trial{settings: s, row: what}
		row, err := t.run(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s of %d, %s: %w", what.Shape, what.Size, what.Kind, err)
		}
		if err := row.Write(file); err != nil {
			return nil, fmt.Errorf("-out: %w", err)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// plan returns what is tried in a round, as rows that have found nothing yet. The kinds of one size and shape follow each
// other, each round from another one on.
func (s settings) plan(round int) results.Rows {
	var plan results.Rows
	for _, size := range s.sizes {
		for _, shape := range s.shapes {
			if shape == results.Spread && size != slices.Min(s.sizes) {
				continue
			}
			for i := range s.kinds {
				kind := s.kinds[(i+round)%len(s.kinds)]
				plan = append(plan, results.Row{Kind: kind, Size: size, Shape: shape, Round: round + 1})
			}
		}
	}
	return plan
}
