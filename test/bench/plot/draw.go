package main

import (
	"bytes"
	"fmt"
	"image/color"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	vgdraw "gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/discov-go/discov/test/bench/internal/results"
)

const (
	chartWidth  = 150 * vg.Length(1)
	chartHeight = 150 * vg.Length(1)
	heading     = 26 * vg.Length(1) // above each row of charts
	legend      = 30 * vg.Length(1) // below the last
	margin      = 14 * vg.Length(1)
	corner      = 10 * vg.Length(1)
	barWidth    = 34 * vg.Length(1)
)

var (
	paper = color.RGBA{255, 255, 255, 255}
	ink   = color.RGBA{51, 57, 66, 255}
	faint = color.RGBA{150, 156, 166, 255}
)

// bars are what is compared, from left to right.
var bars = []struct {
	kind, name string
	color      color.Color
}{
	{results.Raw, "raw clientv3", color.RGBA{147, 155, 166, 255}},
	{results.GoZero, "go-zero", color.RGBA{230, 150, 60, 255}},
	{results.Discov, "discov", color.RGBA{40, 120, 190, 255}},
}

// charts are the figures that are drawn, from left to right, with the titles that fit.
var charts = []struct {
	title string
	results.Figure
}{
	{"Register: time, ms", results.Register},
	{"Register: CPU, ms", results.RegisterCPU},
	{"At rest: CPU, % of a core", results.RestCPU},
	{"At rest: etcd's CPU, %", results.RestEtcdCPU},
	{"Memory each, KiB", results.Memory},
}

// draw returns the SVG.
func draw(rows results.Rows) ([]byte, error) {
	sizes := rows.Sizes()
	width := 2*margin + chartWidth*vg.Length(len(charts))
	height := 2*margin + (heading+chartHeight)*vg.Length(len(sizes)) + legend
	svg := vgsvg.New(width, height)
	page := vgdraw.New(svg)
	svg.SetColor(paper)
	svg.Fill(rounded(page.Rectangle, corner))

	top := page.Max.Y - margin
	for _, size := range sizes {
		label(page, vg.Point{X: margin + 8, Y: top - 14}, 13, ink, fmt.Sprintf("%d registrations", size))
		top -= heading
		for i, c := range charts {
			left := margin + chartWidth*vg.Length(i)
			area := vgdraw.Crop(page, left, left+chartWidth-page.Max.X, top-chartHeight, top-page.Max.Y)
			if err := chart(area, c.title, medians(rows, size, c.Figure)); err != nil {
				return nil, err
			}
		}
		top -= chartHeight
	}
	drawLegend(page)
	return written(svg)
}

// written returns the SVG's text. A page that shows it may have no Liberation Sans; Arial has the same widths.
func written(svg *vgsvg.Canvas) ([]byte, error) {
	var file bytes.Buffer
	if _, err := svg.WriteTo(&file); err != nil {
		return nil, err
	}
	const family = "font-family:Liberation Sans"
	return bytes.ReplaceAll(file.Bytes(), []byte(family), []byte(family+",Arial,Helvetica,sans-serif")), nil
}

// medians returns the height of each bar, in the order of bars; NaN where there is none.
func medians(rows results.Rows, size int, f results.Figure) []float64 {
	var heights []float64
	for _, b := range bars {
		heights = append(heights, rows.Of(b.kind, size, results.Burst).Median(f))
	}
	return heights
}

// chart draws a bar for each height, with its number above.
func chart(area vgdraw.Canvas, title string, heights []float64) error {
	p := plot.New()
	p.BackgroundColor = nil
	p.Title.Text = title
	p.Title.TextStyle = style(10.5, ink)
	p.Title.TextStyle.XAlign, p.Title.TextStyle.YAlign = text.XCenter, text.YTop
	p.HideY()
	p.X.Tick.Length, p.X.Tick.Marker = 0, plot.ConstantTicks{}
	p.X.Color, p.X.Padding = faint, 0
	highest := 0.0
	for i, height := range heights {
		if math.IsNaN(height) {
			continue
		}
		if err := addBar(p, i, height); err != nil {
			return err
		}
		highest = max(highest, height)
	}
	p.X.Min, p.X.Max = -0.6, float64(len(bars))-0.4
	p.Y.Min, p.Y.Max = 0, max(1.18*highest, 1e-3) // room for the number of the highest
	p.Draw(vgdraw.Crop(area, 6, -6, 4, -4))
	return nil
}

// addBar adds bar i and its number. What is below zero, as idle may be dearer than little, is drawn as nothing.
func addBar(p *plot.Plot, i int, height float64) error {
	bar, err := plotter.NewBarChart(plotter.Values{max(0, height)}, barWidth)
	if err != nil {
		return err
	}
	bar.XMin, bar.Color, bar.LineStyle.Width = float64(i), bars[i].color, 0
	number, err := plotter.NewLabels(plotter.XYLabels{
		XYs:    plotter.XYs{{X: float64(i), Y: max(0, height)}},
		Labels: []string{results.Number(height)},
	})
	if err != nil {
		return err
	}
	number.TextStyle[0] = style(10, ink)
	number.TextStyle[0].XAlign = text.XCenter
	number.Offset.Y = 3
	p.Add(bar, number)
	return nil
}

// drawLegend names the bars at the foot of the page.
func drawLegend(page vgdraw.Canvas) {
	const square, gap = 10, 22
	x := margin + vg.Length(8)
	for _, b := range bars {
		page.SetColor(b.color)
		page.Fill(vg.Rectangle{Min: vg.Point{X: x, Y: margin}, Max: vg.Point{X: x + square, Y: margin + square}}.Path())
		label(page, vg.Point{X: x + square + 5, Y: margin + 1}, 11, ink, b.name)
		x += square + 5 + style(11, ink).Width(b.name) + gap
	}
	label(page, vg.Point{X: x, Y: margin + 1}, 11, faint, "lower is better")
}

func label(page vgdraw.Canvas, at vg.Point, size vg.Length, c color.Color, s string) {
	page.FillText(style(size, c), at, s)
}

func style(size vg.Length, c color.Color) text.Style {
	return text.Style{
		Color:   c,
		Font:    font.Font{Typeface: "Liberation", Variant: "Sans", Size: size},
		Handler: plot.DefaultTextHandler,
	}
}

// rounded returns the outline of r with round corners.
func rounded(r vg.Rectangle, radius vg.Length) vg.Path {
	var p vg.Path
	p.Move(vg.Point{X: r.Min.X + radius, Y: r.Min.Y})
	corners := []vg.Point{
		{X: r.Max.X - radius, Y: r.Min.Y + radius},
		{X: r.Max.X - radius, Y: r.Max.Y - radius},
		{X: r.Min.X + radius, Y: r.Max.Y - radius},
		{X: r.Min.X + radius, Y: r.Min.Y + radius},
	}
	for i, c := range corners {
		p.Arc(c, radius, float64(i-1)*math.Pi/2, math.Pi/2) // begins with the line to it
	}
	p.Close()
	return p
}
