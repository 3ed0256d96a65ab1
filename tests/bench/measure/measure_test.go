// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"math/rand/v2"
	"strings"
	"testing"
)

func TestQuantiles(t *testing.T) {
	v := []float64{5, 1, 4, 2, 3}
	for q, want := range map[float64]float64{0: 1, 0.2: 1, 0.21: 2, 0.5: 3, 0.99: 5, 1: 5} {
		if got := Quantile(v, q); got != want {
			t.Errorf("Quantile(%v) = %v, want %v", q, got, want)
		}
	}
	if Median(v) != 3 || Median(v[:4]) != 3 || Median(nil) != 0 || v[0] != 5 {
		t.Errorf("medians %v, %v, %v of %v", Median(v), Median(v[:4]), Median(nil), v)
	}
}

// The interval has the true ratio in it about 95 times of 100, and is inside
// the samples.
func TestIntervalCovers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	inside := 0
	for range 200 {
		var a, b []float64
		for range 30 {
			drift := 1 + r.Float64() // shared by a pair: it must not matter
			a = append(a, 2*drift*(1+0.1*r.NormFloat64()))
			b = append(b, drift)
		}
		ratio, low, high := RatioOfPairs(a, b, r)
		if low > ratio || ratio > high {
			t.Fatalf("%v is not in %v to %v", ratio, low, high)
		}
		if low <= 2 && 2 <= high {
			inside++
		}
	}
	if inside < 180 || inside == 200 {
		t.Errorf("the interval covers %d of 200", inside)
	}
}

func TestBars(t *testing.T) {
	for _, tt := range []struct {
		row  Row
		want string
	}{
		{AtMost(Row{Value: 1.2}, 1.2), Yes},
		{AtMost(Row{Value: 1.21}, 1.2), No},
		{AtMost(Row{Value: 1, Low: 0.9, High: 1.3}, 1.2), Unresolved},
		{AtLeast(Row{Value: 1.2, Low: 1.16, High: 1.3}, 1.15), Yes},
		{AtLeast(Row{Value: 1.1, Low: 1, High: 1.14}, 1.15), No},
	} {
		if tt.row.Met != tt.want {
			t.Errorf("%+v: want %s", tt.row, tt.want)
		}
	}
}

func TestReport(t *testing.T) {
	r := Report{Rows: []Row{AtMost(Row{Group: "g", Name: "a", Unit: "s", Value: 0.01234, N: 3}, 2), {Group: "h", Name: "b", Unit: "x", Value: 1234.5, Low: 0.999, High: 23.45, N: 30, Note: "why"}}}
	var text, md, js strings.Builder
	for _, err := range []error{r.Text(&text), r.Markdown(&md), r.JSON(&js)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"0.0123", "<= 2.00", "1234", "0.999 to 23.4", "why"} { // 1234.5 rounds to even
		if !strings.Contains(text.String(), want) || !strings.Contains(md.String(), want) {
			t.Errorf("%q is missing in\n%s\n%s", want, text.String(), md.String())
		}
	}
	if !strings.Contains(md.String(), "## g\n") || !strings.Contains(js.String(), `"met": "yes"`) {
		t.Errorf("%s\n%s", md.String(), js.String())
	}
}
