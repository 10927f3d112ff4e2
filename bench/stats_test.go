package bench

import (
	"math"
	"slices"
	"testing"
)

func TestMedian(t *testing.T) {
	for name, tt := range map[string]struct {
		values []float64
		want   float64
	}{
		"none":       {nil, 0},
		"one":        {[]float64{7}, 7},
		"odd":        {[]float64{9, 1, 5}, 5},
		"even":       {[]float64{4, 1, 3, 2}, 2.5},
		"an outlier": {[]float64{1, 1e9, 2}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			before := slices.Clone(tt.values)
			if got := Median(tt.values); got != tt.want {
				t.Errorf("Median(%v) = %v, want %v", tt.values, got, tt.want)
			}
			if !slices.Equal(before, tt.values) {
				t.Errorf("Median changed its argument to %v", tt.values)
			}
		})
	}
}

func TestRatioCI(t *testing.T) {
	nan := math.NaN()
	for name, tt := range map[string]struct {
		perch, other     []float64
		ratio, low, high float64
	}{
		"no rounds":            {nil, nil, 0, 0, 0},
		"one round":            {[]float64{3}, []float64{4}, 0.75, 0, 0},
		"two rounds":           {[]float64{3, 5}, []float64{4, 4}, 1, 0, 0},
		"no spread":            {[]float64{1, 2, 3}, []float64{2, 4, 6}, 0.5, 0.5, 0.5},
		"three rounds":         {[]float64{1, 2, 3}, []float64{1, 1, 1}, 2, 1, 3},
		"pairs, not medians":   {[]float64{1, 10, 100}, []float64{2, 20, 200}, 0.5, 0.5, 0.5},
		"unequal lengths":      {[]float64{1, 1, 2, 9}, []float64{2, 2, 4}, 0.5, 0.5, 0.5},
		"a round without peer": {[]float64{1, 9, 1, 1}, []float64{2, 0, 2, 2}, 0.5, 0.5, 0.5},
		"a round without us":   {[]float64{1, 0, nan}, []float64{2, 1, 1}, 0.5, 0, 0},
		"nothing left":         {[]float64{0}, []float64{0}, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			ratio, low, high := RatioCI(tt.perch, tt.other)
			if ratio != tt.ratio || low != tt.low || high != tt.high {
				t.Errorf("RatioCI(%v, %v) = %v %v %v, want %v %v %v", tt.perch, tt.other, ratio, low, high, tt.ratio, tt.low, tt.high)
			}
		})
	}
}

// TestRatioCINarrows holds the interval against the exact one: of the median of
// 1 to 21, the 95 % bootstrap interval lies near the order statistics 6 and 16
// that the binomial distribution gives.
func TestRatioCINarrows(t *testing.T) {
	var perch, other []float64
	for i := range 21 {
		perch, other = append(perch, float64((i*8)%21+1)), append(other, 1)
	}
	ratio, low, high := RatioCI(perch, other)
	if ratio != 11 {
		t.Errorf("ratio %v, want 11", ratio)
	}
	if low < 5 || low > 7 || high < 15 || high > 17 {
		t.Errorf("interval %v to %v, want about 6 to 16", low, high)
	}
	again, lowAgain, highAgain := RatioCI(perch, other)
	if again != ratio || lowAgain != low || highAgain != high {
		t.Error("a second reckoning differs")
	}
}
