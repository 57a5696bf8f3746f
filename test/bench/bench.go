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
	fmt.Fprintf(out, "Medians; -rounds %d -steady %v -at-once %d; %d brief trials a round\n", s.rounds, s.steady, s.atOnce, s.briefs)
	return rows.Table(out)
}

// round makes the trials of a round.
func (s settings) round(ctx context.Context, round int, file, progress io.Writer) (results.Rows, error) {
	var rows results.Rows
	for _, what := range s.plan(round) {
		fmt.Fprintf(progress, "round %d of %d: %s of %d, %s%s\n", round+1, s.rounds, what.Shape, what.Size, what.Kind, extent(what))
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

// extent says which part of the row is tried.
func extent(what results.Row) string {
	if what.Brief {
		return ", the starts only"
	}
	return ""
}

// plan returns what is tried in a round, as rows that have found nothing yet: of each size and shape one trial of each
// kind, and before those of a burst the brief ones. Each turn of the kinds begins with another one, as does each round.
func (s settings) plan(round int) results.Rows {
	var plan results.Rows
	for _, size := range s.sizes {
		for _, shape := range s.shapes {
			if shape == results.Spread && size != slices.Min(s.sizes) {
				continue
			}
			if shape == results.Burst {
				for i := range s.briefs {
					plan = append(plan, s.turns(round+i, results.Row{Size: size, Shape: shape, Round: round + 1, Brief: true})...)
				}
			}
			plan = append(plan, s.turns(round+s.briefs, results.Row{Size: size, Shape: shape, Round: round + 1})...)
		}
	}
	return plan
}

// turns returns the row for each kind, from the first-th one on.
func (s settings) turns(first int, row results.Row) (turns results.Rows) {
	for i := range s.kinds {
		row.Kind = s.kinds[(first+i)%len(s.kinds)]
		turns = append(turns, row)
	}
	return turns
}
