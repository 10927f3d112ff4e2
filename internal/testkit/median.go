package testkit

import (
	"cmp"
	"slices"
)

// Median is the middle of v, the upper one of two; the zero value for none.
func Median[T cmp.Ordered](v []T) T {
	if len(v) == 0 {
		var zero T
		return zero
	}
	s := slices.Clone(v)
	slices.Sort(s)
	return s[len(s)/2]
}
