// SPDX-License-Identifier: Apache-2.0

// Package measure turns samples into rows of a report: quantiles, ratios of
// interleaved pairs with their interval, and whether a bar is met.
package measure

import (
	"math"
	"math/rand/v2"
	"slices"
)

// Whether a row's figure meets its bar.
const (
	Yes        = "yes"
	No         = "no"
	Unresolved = "not resolved" // the bar lies inside the interval
)

// A Row is one figure.
type Row struct {
	Group string  `json:"group"`
	Name  string  `json:"name"`
	Unit  string  `json:"unit"` // "x" for a ratio
	Value float64 `json:"value"`
	Low   float64 `json:"low,omitempty"`  // 95% interval; both 0 for a figure without
	High  float64 `json:"high,omitempty"` //
	N     int     `json:"n"`              // samples
	Bar   string  `json:"bar,omitempty"`  // e.g. "<= 1.2"; empty for none
	Met   string  `json:"met,omitempty"`  // of the bar
	Note  string  `json:"note,omitempty"`
}

// Quantile returns the q-quantile of v by the nearest-rank method, 0 of
// nothing. v stays as it is.
func Quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	i := int(math.Ceil(q*float64(len(s)))) - 1
	return s[min(max(i, 0), len(s)-1)]
}

// Median returns the middle of v, 0 of nothing.
func Median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// resamples of a bootstrap.
const resamples = 2000

// RatioOfPairs returns the median of a[i]/b[i] and its 95% interval: the
// percentile bootstrap over the pairs. a and b are of one length.
func RatioOfPairs(a, b []float64, r *rand.Rand) (ratio, low, high float64) {
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = a[i] / b[i]
	}
	low, high = Interval(ratios, r)
	return Median(ratios), low, high
}

// Interval returns the 95% interval of the median of v.
func Interval(v []float64, r *rand.Rand) (low, high float64) {
	if len(v) == 0 {
		return 0, 0
	}
	medians, again := make([]float64, resamples), make([]float64, len(v))
	for i := range medians {
		for j := range again {
			again[j] = v[r.IntN(len(v))]
		}
		medians[i] = Median(again)
	}
	return Quantile(medians, 0.025), Quantile(medians, 0.975)
}

// AtMost returns r judged by a bar that it must not exceed.
func AtMost(r Row, bar float64) Row {
	return judge(r, "<= "+text(bar), func(v float64) bool { return v <= bar })
}

// AtLeast returns r judged by a bar that it must reach.
func AtLeast(r Row, bar float64) Row {
	return judge(r, ">= "+text(bar), func(v float64) bool { return v >= bar })
}

func judge(r Row, bar string, good func(float64) bool) Row {
	low, high := r.Low, r.High
	if low == 0 && high == 0 {
		low, high = r.Value, r.Value
	}
	r.Bar, r.Met = bar, Unresolved
	switch {
	case good(low) && good(high):
		r.Met = Yes
	case !good(low) && !good(high):
		r.Met = No
	}
	return r
}

// NoWorse returns the ratio r judged by whether its interval contains 1 or is
// on the better side of it: above when more is better, else below.
func NoWorse(r Row, more bool) Row {
	r.Bar, r.Met = "contains or beats 1.00", No
	if more && r.High >= 1 || !more && r.Low <= 1 {
		r.Met = Yes
	}
	return r
}
