package bench

import (
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// noValue stands where a value is not known, so that it is not read as zero.
const noValue = "–"

// humanDuration has three digits: 8.21 µs, 134 ms, 2.50 s; from two minutes on
// minutes and seconds.
func humanDuration(d time.Duration) string {
	sign := ""
	if d < 0 {
		sign, d = "-", -max(d, -math.MaxInt64)
	}
	ns := float64(d)
	switch {
	case d == 0:
		return "0 s"
	case ns < 999.5:
		return sign + strconv.FormatInt(int64(d), 10) + " ns"
	case ns < 999.5e3:
		return sign + digits(ns/1e3) + " µs"
	case ns < 999.5e6:
		return sign + digits(ns/1e6) + " ms"
	case d < 2*time.Minute:
		return sign + digits(ns/1e9) + " s"
	}
	return sign + d.Round(time.Second).String()
}

// humanBytes counts in powers of 1024: 934 B, 7.85 KiB, 17.2 MiB.
func humanBytes(b float64) string {
	if !isFinite(b) {
		return noValue
	}
	sign := ""
	if b < 0 {
		sign, b = "-", -b
	}
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	u := 0
	for b >= 1023.5 && u < len(units)-1 {
		b /= 1024
		u++
	}
	if u == 0 {
		return sign + strconv.FormatFloat(math.Round(b), 'f', 0, 64) + " B"
	}
	return sign + digits(b) + " " + units[u]
}

// humanRate is one per second: 950 /s, 124 k/s, 1.25 M/s.
func humanRate(r float64) string {
	switch {
	case !isFinite(r):
		return noValue
	case r >= 999.5e6:
		return digits(r/1e9) + " G/s"
	case r >= 999.5e3:
		return digits(r/1e6) + " M/s"
	case r >= 9999.5:
		return digits(r/1e3) + " k/s"
	case r >= 999.5:
		return humanCount(int64(math.Round(r))) + " /s"
	}
	return digits(r) + " /s"
}

// humanCount groups thousands: 1,250,000.
func humanCount(n int64) string {
	s := strconv.FormatInt(n, 10)
	sign := ""
	if s[0] == '-' {
		sign, s = "-", s[1:]
	}
	var b strings.Builder
	for i := range len(s) {
		if i > 0 && (len(s)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteByte(s[i])
	}
	return sign + b.String()
}

// humanValue is a measure's value with its unit, as a Ratio has it: times come
// in "us", memory in "B".
func humanValue(v float64, unit string) string {
	if !isFinite(v) {
		return noValue
	}
	switch unit {
	case "ns", "us", "µs", "ms", "s":
		scale := map[string]float64{"ns": 1, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}[unit]
		// A ping's share can be below a nanosecond's resolution: digits then.
		if ns := v * scale; math.Abs(ns) >= 1 && math.Abs(ns) < 1e18 {
			return humanDuration(time.Duration(math.Round(ns)))
		}
		return digits(v) + " " + strings.Replace(unit, "us", "µs", 1)
	case "B":
		return humanBytes(v)
	case "":
		return digits(v)
	}
	return digits(v) + " " + printable(unit)
}

// humanRatio is a ratio with its sign: 0.83×.
func humanRatio(r float64) string {
	if !isFinite(r) {
		return noValue
	}
	if r > 0 && r < 0.095 {
		return strconv.FormatFloat(r, 'f', 3, 64) + "×"
	}
	if r >= 99.95 {
		return strconv.FormatFloat(r, 'f', 0, 64) + "×"
	}
	return strconv.FormatFloat(r, 'f', 2, 64) + "×"
}

// humanPercentile is p99.9, without zeros at its end.
func humanPercentile(p float64) string {
	return "p" + strconv.FormatFloat(math.Round(p*1e6)/1e6, 'f', -1, 64)
}

// humanShare is a part of a whole, or of a core, in percent.
func humanShare(share float64) string {
	if !isFinite(share) {
		return noValue
	}
	return strconv.FormatFloat(100*share, 'f', 0, 64) + "%"
}

// digits keeps three significant ones, and all of those before the point.
func digits(v float64) string {
	a := math.Abs(v)
	switch {
	case !isFinite(v):
		return noValue
	case v == 0:
		return "0"
	case a >= 1e15:
		return strconv.FormatFloat(v, 'g', 3, 64)
	case a >= 99.95:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 9.995:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 0.0995:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'g', 2, 64)
}

func isFinite(v float64) bool {
	return !math.IsNaN(v) && !math.IsInf(v, 0)
}

// printable takes out of a text what would steer a terminal. Names come from
// users, and an error's text may come from the server that was loaded.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t', r == '\r':
			return ' '
		case !unicode.IsPrint(r), unicode.Is(unicode.Bidi_Control, r):
			return '\uFFFD'
		}
		return r
	}, s)
}
