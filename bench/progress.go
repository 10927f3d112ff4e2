package bench

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	// redrawEvery keeps a terminal readable over a slow line; plainEvery keeps a
	// log of a long run short.
	redrawEvery = 100 * time.Millisecond
	plainEvery  = 2 * time.Second
	// plainWidth is taken where the terminal does not tell its own.
	plainWidth = 80
	barWidth   = 24
)

// Progress says how far a run is: one redrawn line with a bar on a terminal,
// and elsewhere, in a log or a pipe, a plain line now and then. It costs nothing
// between two lines, so it may be told of every step. For one goroutine.
type Progress struct {
	w        io.Writer
	terminal bool
	quiet    bool
	full     string // a cell of the bar that is done
	rest     string // and one that is not
	now      func() time.Time
	width    func() int

	title   string
	timed   bool // done and total are nanoseconds
	running bool
	begun   time.Time
	drawn   time.Time // the last line; zero: none since Start
	done    int64
	total   int64
	detail  string
}

// NewProgress reports to w, usually standard error. terminal says that w can
// redraw a line, quiet that nothing is to be written at all.
func NewProgress(w io.Writer, terminal, quiet bool) *Progress {
	p := &Progress{w: w, terminal: terminal, quiet: quiet || w == nil, now: time.Now}
	p.full, p.rest = "#", "-"
	if utf8Locale(os.Getenv) {
		p.full, p.rest = "█", "░"
	}
	p.width = func() int { return terminalWidth(w) }
	return p
}

// Start begins a step of total things, of which Update counts those done; 0: it
// is not known yet how many. A step that still runs is ended first.
func (p *Progress) Start(title string, total int64) {
	p.start(title, total, false)
}

// StartTimed begins a step that takes total; Update is then told nanoseconds.
func (p *Progress) StartTimed(title string, total time.Duration) {
	p.start(title, int64(total), true)
}

func (p *Progress) start(title string, total int64, timed bool) {
	if p.quiet {
		return
	}
	p.Done()
	p.title, p.timed, p.running = printable(title), timed, true
	p.done, p.total, p.detail = 0, total, ""
	p.begun, p.drawn = p.now(), time.Time{}
	p.draw(p.begun)
}

// Update says that done of total are done, and what is worth knowing besides. It
// writes only when the last line is old enough.
func (p *Progress) Update(done, total int64, detail string) {
	if p.quiet || !p.running {
		return
	}
	p.done, p.total, p.detail = done, total, detail
	every := plainEvery
	if p.terminal {
		every = redrawEvery
	}
	if now := p.now(); now.Sub(p.drawn) >= every {
		p.draw(now)
	}
}

// Done ends the step with a line that stays: what it took, and the last detail.
// Without a step it does nothing.
func (p *Progress) Done() {
	if p.quiet || !p.running {
		return
	}
	p.running = false
	line := p.title + ": done in " + humanDuration(p.now().Sub(p.begun))
	if p.detail != "" {
		line += ", " + printable(p.detail)
	}
	if p.terminal {
		fmt.Fprintf(p.w, "\r%s\x1b[K\n", cutLine(line, p.width()-1))
		return
	}
	fmt.Fprintln(p.w, line)
}

func (p *Progress) draw(now time.Time) {
	p.drawn = now
	if !p.terminal {
		fmt.Fprintln(p.w, p.plain(now))
		return
	}
	// The last column stays free: some terminals wrap when it is written.
	fmt.Fprintf(p.w, "\r%s\x1b[K", p.line(now, p.width()-1))
}

// plain is a line for a log.
func (p *Progress) plain(now time.Time) string {
	parts := []string{p.title}
	if p.total > 0 {
		parts[0] += fmt.Sprintf(": %d%%", p.percent())
	}
	if how := p.howMuch(); how != "" {
		parts = append(parts, how)
	}
	if eta := p.eta(now); eta != "" {
		parts = append(parts, eta+" left")
	}
	if p.detail != "" {
		parts = append(parts, printable(p.detail))
	}
	return strings.Join(parts, ", ")
}

// line is one for a terminal of so many columns. On a narrow one the bar goes
// first, then the detail is cut.
func (p *Progress) line(now time.Time, columns int) string {
	tail := p.howMuch()
	if eta := p.eta(now); eta != "" {
		tail += "  ETA " + eta
	}
	if p.detail != "" {
		tail += "  " + printable(p.detail)
	}
	tail = strings.TrimLeft(tail, " ")
	if p.total <= 0 {
		return cutLine(p.title+"  "+tail, columns)
	}
	bare := fmt.Sprintf("%s %3d%%  %s", p.title, p.percent(), tail)
	if utf8.RuneCountInString(bare)+barWidth+1 > max(columns, plainWidth-1) || columns < plainWidth/2 {
		return cutLine(bare, columns)
	}
	filled := barWidth * p.percent() / 100
	bar := strings.Repeat(p.full, filled) + strings.Repeat(p.rest, barWidth-filled)
	return cutLine(fmt.Sprintf("%s %s %3d%%  %s", p.title, bar, p.percent(), tail), columns)
}

func (p *Progress) percent() int {
	if p.total <= 0 {
		return 0
	}
	return int(100 * p.share())
}

func (p *Progress) share() float64 {
	return min(max(float64(p.done)/float64(p.total), 0), 1)
}

func (p *Progress) howMuch() string {
	switch {
	case p.timed && p.total > 0:
		return fmt.Sprintf("%s/%s", clockTime(time.Duration(p.done)), clockTime(time.Duration(p.total)))
	case p.timed:
		return clockTime(time.Duration(p.done))
	case p.total > 0:
		return fmt.Sprintf("%s/%s", humanCount(p.done), humanCount(p.total))
	case p.done > 0:
		return humanCount(p.done)
	}
	return ""
}

// eta is empty until there is something to reckon from: the rest of a known
// time, or the rest at the pace so far.
func (p *Progress) eta(now time.Time) string {
	if p.total <= 0 || p.done >= p.total {
		return ""
	}
	if p.timed {
		return clockTime(time.Duration(p.total - p.done))
	}
	taken := now.Sub(p.begun)
	if p.done <= 0 || taken < time.Second/2 {
		return ""
	}
	share := p.share()
	return clockTime(time.Duration(float64(taken) * (1 - share) / share))
}

// clockTime is m:ss, or h:mm:ss.
func clockTime(d time.Duration) string {
	s := int64(max(d, 0).Round(time.Second) / time.Second)
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

// cutLine shortens a line to so many columns: a wrapped one can't be redrawn.
func cutLine(line string, columns int) string {
	line = strings.TrimRight(line, " ")
	if columns < 1 || utf8.RuneCountInString(line) <= columns {
		return line
	}
	return string([]rune(line)[:columns])
}

// terminalWidth asks the terminal each time, since its window changes.
func terminalWidth(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return plainWidth
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col < 10 {
		return plainWidth
	}
	return int(size.Col)
}

// utf8Locale follows the order of POSIX: the first variable set decides.
func utf8Locale(getenv func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToLower(getenv(name)); v != "" {
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}
