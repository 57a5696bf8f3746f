package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/discov-go/discov/test/bench/internal/results"
)

var (
	allKinds  = []string{results.Raw, results.GoZero, results.Discov}
	allShapes = []string{results.Burst, results.Spread}
)

// settings are what a user can choose.
type settings struct {
	sizes  []int
	rounds int
	briefs int // trials of the starts alone, for each whole one of a burst
	steady time.Duration
	atOnce int
	shapes []string
	kinds  []string
	out    string // "" for no file
}

// parse reads the flags. What is wrong with them it writes to errs, too, with their usage.
func parse(args []string, errs io.Writer) (settings, error) {
	s := settings{
		sizes: []int{1000, 10000}, rounds: 3, briefs: 4, steady: 70 * time.Second, atOnce: 50,
		shapes: allShapes, kinds: allKinds,
	}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(errs)
	fs.Func("sizes", "how many registrations, a `list` (default 1000,10000)", func(v string) error {
		return setList(&s.sizes, v, above0)
	})
	fs.Func("rounds", "how often everything is measured, a `number` (default 3)", func(v string) error {
		return set(&s.rounds, v, above0)
	})
	fs.Func("steady", "how long registrations are watched at rest, a `duration` (default 70s)", func(v string) error {
		return set(&s.steady, v, lasting)
	})
	fs.Func("at-once", "how many calls are under way at most, a `number` (default 50)", func(v string) error {
		return set(&s.atOnce, v, above0)
	})
	fs.Func("shapes", "how the starts come, a `list` (default burst,spread)", func(v string) error {
		return setList(&s.shapes, v, oneOf(allShapes))
	})
	fs.Func("kinds", "what is measured, a `list` (default raw,gozero,discov)", func(v string) error {
		return setList(&s.kinds, v, oneOf(allKinds))
	})
	fs.StringVar(&s.out, "out", "", "the `file` to write the rows to, one JSON object a line (default none)")
	if err := fs.Parse(args); err != nil {
		return settings{}, err
	}
	if fs.NArg() > 0 {
		err := fmt.Errorf("unexpected argument %q: all settings are flags", fs.Arg(0))
		fmt.Fprintln(errs, err)
		return settings{}, err
	}
	return s, nil
}

func set[T any](to *T, v string, read func(string) (T, error)) error {
	value, err := read(v)
	if err == nil {
		*to = value
	}
	return err
}

// setList reads values that are separated by commas. Each may be there once.
func setList[T comparable](to *[]T, v string, read func(string) (T, error)) error {
	var list []T
	for part := range strings.SplitSeq(v, ",") {
		value, err := read(strings.TrimSpace(part))
		if err != nil {
			return err
		}
		if slices.Contains(list, value) {
			return fmt.Errorf("%v is there twice", value)
		}
		list = append(list, value)
	}
	*to = list
	return nil
}

func above0(v string) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%q is not a whole number above 0", v)
	}
	return n, nil
}

func lasting(v string) (time.Duration, error) {
	d, err := time.ParseDuration(v)
	if err == nil && d <= 0 {
		err = errors.New("not above 0")
	}
	return d, err
}

func oneOf(all []string) func(string) (string, error) {
	return func(v string) (string, error) {
		if !slices.Contains(all, v) {
			return "", fmt.Errorf("%q is none of %s", v, strings.Join(all, ", "))
		}
		return v, nil
	}
}
