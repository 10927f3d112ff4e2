package bench

import (
	"math"
	"strconv"
	"time"
)

// scale maps values to the length of an axis.
type scale struct {
	low, high float64
	log       bool
}

// share is where v stands between the ends, from 0 to 1.
func (s scale) share(v float64) float64 {
	low, high := s.low, s.high
	if s.log {
		low, high, v = math.Log10(low), math.Log10(high), math.Log10(max(v, s.low))
	}
	if !(high > low) {
		return 0
	}
	return min(max((v-low)/(high-low), 0), 1)
}

// scaleMost is where a scale ends at the latest: above it the ticks would be
// infinite. Nothing that is measured comes near it.
const scaleMost = 1e300

// linearScale goes from 0 to a round number above high, with about five ticks.
// base is what the unit counts by, so that MiB are round as well.
func linearScale(high float64, base float64) (scale, []float64) {
	if !(high > 0) || math.IsInf(high, 0) {
		high = 1
	}
	high = min(high, scaleMost)
	unit := 1.0
	for base > 1 && high/unit >= base && unit < 1e18 {
		unit *= base
	}
	step := niceStep(high/unit/5) * unit
	var ticks []float64
	for i := 0; i <= 12; i++ {
		v := float64(i) * step
		ticks = append(ticks, v)
		if v >= high*(1-1e-9) {
			break
		}
	}
	return scale{high: ticks[len(ticks)-1]}, ticks
}

// niceStep is the next of 1, 2, 5 and their tens.
func niceStep(v float64) float64 {
	ten := math.Pow(10, math.Floor(math.Log10(v)))
	if !isFinite(ten) || ten == 0 {
		return 1
	}
	for _, m := range []float64{1, 2, 5} {
		if m*ten >= v*(1-1e-9) {
			return m * ten
		}
	}
	return 10 * ten
}

// logScale covers the values with round ends, and with ticks at 1, 2, 5 where
// there is room and at powers of ten where there is not.
func logScale(low, high float64) (scale, []float64) {
	low = max(low, 1e-12)
	high = min(max(high, low*1.01), 1e24)
	below, above := math.Floor(math.Log10(low)), math.Ceil(math.Log10(high))
	steps := []float64{1, 2, 5}
	if math.Log10(high/low) > 2.5 {
		steps = []float64{1}
	}
	var ticks []float64
	for e := below; e <= above; e++ {
		for _, m := range steps {
			ticks = append(ticks, m*math.Pow(10, e))
		}
	}
	// From the last tick below everything to the first above.
	first, last := 0, len(ticks)-1
	for first+1 < len(ticks) && ticks[first+1] <= low*(1+1e-9) {
		first++
	}
	for last > first+1 && ticks[last-1] >= high*(1-1e-9) {
		last--
	}
	ticks = ticks[first : last+1]
	if n := len(ticks); n < 2 {
		ticks = []float64{ticks[0], ticks[0] * 10}
	}
	return scale{low: ticks[0], high: ticks[len(ticks)-1], log: true}, ticks
}

// timeScale ends with the run and has ticks at round times.
func timeScale(length float64) (scale, []float64) {
	step := math.Inf(1)
	for _, s := range []float64{1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400} {
		if length/s <= 6 {
			step = s
			break
		}
	}
	if math.IsInf(step, 0) {
		step = niceStep(length / 6)
	}
	var ticks []float64
	for v := 0.0; v <= length && len(ticks) < 10; v += step {
		ticks = append(ticks, v)
	}
	return scale{high: max(length, 1e-9)}, ticks
}

// axisCount is 0, 200, 50k, 1.5M.
func axisCount(v float64) string {
	switch {
	case v >= 1e9:
		return digitsShort(v/1e9) + "G"
	case v >= 1e6:
		return digitsShort(v/1e6) + "M"
	case v >= 1e4:
		return digitsShort(v/1e3) + "k"
	}
	return digitsShort(v)
}

// axisDuration has no zeros after the point: ticks are round.
func axisDuration(d time.Duration) string {
	switch {
	case d >= time.Second:
		return digitsShort(d.Seconds()) + " s"
	case d >= time.Millisecond:
		return digitsShort(float64(d)/1e6) + " ms"
	case d >= time.Microsecond:
		return digitsShort(float64(d)/1e3) + " µs"
	}
	return digitsShort(float64(d)) + " ns"
}

func digitsShort(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }

// axisBytes has no zeros after the point either.
func axisBytes(v float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	u := 0
	for v >= 1024 && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	return strconv.FormatFloat(round2(v), 'f', -1, 64) + " " + units[u]
}
