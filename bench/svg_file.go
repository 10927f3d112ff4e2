package bench

import (
	"bytes"
	"fmt"
	"slices"
)

// A plot in a file of its own has a fixed width, narrow enough for a phone to
// show its letters at their size and for two to stand side by side in a page of
// documentation.
const (
	fileWidth  = 400
	fileMargin = 16
	fileTop    = 62 // below the heading
	axisRoom   = 72 // left of a line plot, for its labels
	legendRow  = 22
	nameInFile = 20
	headInFile = 48
)

// plotFile is a plot with the frame that makes it a file. It paints its own
// background: it follows the reader's system, which may be dark where the page
// around it is light.
type plotFile struct {
	Title, Desc string
	Head, Sub   string
	Height      int
	X           int
	PlotWidth   int
	PlotHeight  int
	Bars        *barPlot
	Ratios      *ratioPlot
	Lines       *linePlot
	Legend      []placedLegend
	NameAt      int // of the x axis
}

type placedLegend struct {
	Name        string
	Class, X, Y int
}

// What the template asks for.

func (f *plotFile) Width() int       { return fileWidth }
func (f *plotFile) Y() int           { return fileTop }
func (f *plotFile) Inner() int       { return fileWidth - 1 }
func (f *plotFile) InnerHeight() int { return f.Height - 1 }

func barFile(p *barPlot) *plotFile {
	return &plotFile{Title: p.Title, Desc: p.Desc, Head: shorten(p.Title, headInFile), Sub: "less is better", Bars: p,
		X: fileMargin, PlotWidth: fileWidth - 2*fileMargin, PlotHeight: p.Height, Height: fileTop + p.Height + fileMargin}
}

func ratioFile(p *ratioPlot) *plotFile {
	return &plotFile{Title: p.Title, Desc: p.Desc, Head: shorten(p.Title, headInFile), Sub: "left of 1×, Perch is the cheaper", Ratios: p,
		X: fileMargin, PlotWidth: fileWidth - 2*fileMargin, PlotHeight: p.Height, Height: fileTop + p.Height + 36}
}

func lineFile(p *linePlot) *plotFile {
	f := &plotFile{Title: p.Title, Desc: p.Desc, Head: shorten(p.Title, headInFile), Sub: p.YName, Lines: p,
		X: axisRoom, PlotWidth: fileWidth - axisRoom - 28, PlotHeight: p.Height, NameAt: fileTop + p.Height + 46}
	f.Height = f.NameAt + fileMargin
	if len(p.Lines) < 2 {
		return f
	}
	// The last line is the first server: it is drawn on top.
	for i, line := range slices.Backward(p.Lines) {
		at := len(p.Lines) - 1 - i
		f.Legend = append(f.Legend, placedLegend{Name: shorten(line.Name, nameInFile), Class: line.Class,
			X: fileMargin + at%2*(fileWidth/2-fileMargin/2), Y: f.NameAt + fileMargin + at/2*legendRow})
	}
	f.Height += (len(p.Lines)+1)/2*legendRow + fileMargin/2
	return f
}

// render is the file's text.
func (f *plotFile) render() ([]byte, error) {
	page, err := reportTemplates()
	if err != nil {
		return nil, fmt.Errorf("bench: parse plot: %w", err)
	}
	var b bytes.Buffer
	if err := page.ExecuteTemplate(&b, "plotfile", f); err != nil {
		return nil, fmt.Errorf("bench: fill plot: %w", err)
	}
	return b.Bytes(), nil
}
