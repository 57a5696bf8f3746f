package main

import (
	"bytes"
	_ "embed"
	"text/template"
	"time"
)

// Measures of the picture.
const (
	width   = 820
	left    = 90 // where the rows begin
	right   = 20
	top     = 64
	rowStep = 46
	rowHigh = 24
	axis    = 44 // below the last row
)

//go:embed timeline.svg.tmpl
var pictureText string

var picture = template.Must(template.New("picture").Parse(pictureText))

// A box is a part of a row as it is drawn.
type box struct {
	X, Width float64
	Text     string
}

// A bar is a row as it is drawn.
type bar struct {
	Name   string
	Y      int
	Absent []box
	Total  string // how long the key was absent
}

// A tick is a mark of the axis.
type tick struct {
	X    float64
	Text string
}

// drawing is what the template takes.
type drawing struct {
	Width, Height, Left, RowHigh, Bottom int
	Shade                                int     // how high the shade of a fault is
	Whole                                float64 // a row's width
	Faults, Down                         []box
	Bars                                 []bar
	Ticks                                []tick
}

func draw(line timeline) ([]byte, error) {
	d := drawing{Width: width, Left: left, RowHigh: rowHigh, Whole: width - left - right}
	d.Bottom = top + rowStep*len(line.rows)
	d.Height, d.Shade = d.Bottom+axis, d.Bottom-50
	scale := d.Whole / float64(line.lasts)
	boxOf := func(p part, text string) box {
		return box{left + float64(p.from)*scale, max(1.5, float64(p.to-p.from)*scale), text}
	}
	for _, f := range line.faults {
		d.Faults = append(d.Faults, boxOf(f.part, f.name))
		if f.down {
			d.Down = append(d.Down, boxOf(f.part, f.name))
		}
	}
	for i, r := range line.rows {
		b := bar{Name: r.name, Y: top + rowStep*i + (rowStep-rowHigh)/2}
		var total time.Duration
		for _, p := range r.absent {
			b.Absent = append(b.Absent, boxOf(p, ""))
			total += p.to - p.from
		}
		b.Total = "never absent"
		if total > 0 {
			b.Total = "absent for " + total.Round(10*time.Millisecond).String()
		}
		d.Bars = append(d.Bars, b)
	}
	const ticks = 20 * time.Second
	for at := time.Duration(0); at <= line.lasts; at += ticks {
		d.Ticks = append(d.Ticks, tick{left + float64(at)*scale, at.String()})
	}
	var b bytes.Buffer
	err := picture.Execute(&b, d)
	return b.Bytes(), err
}
