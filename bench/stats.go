package bench

import (
	"math"
	"math/rand/v2"
	"slices"
)

// resamples are enough for the ends of a 95 % interval to stand still in the
// second digit.
const resamples = 2000

// leastRounds are those from which on an interval is given: that of two could
// only be these two.
const leastRounds = 3

// Median returns the middle of the values, between the two middle ones of an
// even number, and 0 of none. It leaves the values as they are.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	return quantile(sorted, 0.5)
}

// RatioCI compares what Perch and a peer cost in interleaved rounds: the values
// at one index were measured next to each other, so that what the machine did at
// that time is in both and falls out of their ratio. ratio is the median of
// these ratios, low and high its 95 % confidence interval: the percentiles of
// the medians of 2,000 resamples (bootstrap). The resamples are the same each
// time, so a report can be reckoned again from its rounds.
//
// A round that misses a value, or has one that is not above zero, is left out.
// Of fewer than leastRounds no interval is given, low and high are 0; without
// any all are 0.
func RatioCI(perch, other []float64) (ratio, low, high float64) {
	ratios := roundRatios(perch, other)
	ratio = Median(ratios)
	if len(ratios) < leastRounds {
		return ratio, 0, 0
	}
	random := rand.New(rand.NewPCG(6455, 13)) // any fixed seed
	medians := make([]float64, resamples)
	sample := make([]float64, len(ratios))
	for i := range medians {
		for j := range sample {
			sample[j] = ratios[random.IntN(len(ratios))]
		}
		slices.Sort(sample)
		medians[i] = quantile(sample, 0.5)
	}
	slices.Sort(medians)
	return ratio, min(quantile(medians, 0.025), ratio), max(quantile(medians, 0.975), ratio)
}

// roundRatios are those of the rounds in which both sides were measured.
func roundRatios(perch, other []float64) []float64 {
	ratios := make([]float64, 0, len(perch))
	for i := range min(len(perch), len(other)) {
		if r := perch[i] / other[i]; perch[i] > 0 && other[i] > 0 && r > 0 && isFinite(r) {
			ratios = append(ratios, r)
		}
	}
	return ratios
}

// quantile takes what lies at share q of sorted values, between two of them in
// proportion (type 7 of Hyndman and Fan).
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	below := int(math.Floor(at))
	if below+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	part := at - float64(below)
	return sorted[below]*(1-part) + sorted[below+1]*part
}
