// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"errors"
	"testing"
)

func TestWhatIsWorthTelling(t *testing.T) {
	first, second := Config{Backend: BackendConfig{VNI: 1}}, Config{Backend: BackendConfig{VNI: 2}}
	open := Config{Networks: []Network{OpenNetwork(IPv4, 24)}, Backend: first.Backend}
	torn, gone := errors.New("torn"), errors.New("gone")
	n := ConfigNews{Good: first}
	for i, step := range []struct {
		cfg  Config
		err  error
		news bool
		good Config
	}{
		{first, nil, false, first},
		{second, nil, true, second},
		{Config{}, torn, true, second},
		{Config{}, errors.New("torn"), false, second}, // the same reason, read again
		{Config{}, gone, true, second},
		{second, nil, true, second}, // valid again
		{second, nil, false, second},
		{first, nil, true, first},
		{open, nil, true, open}, // networks count as well
	} {
		if news := n.Update(step.cfg, step.err); news != step.news || !n.Good.Equal(step.good) || (n.Err != nil) != (step.err != nil) {
			t.Errorf("step %d: %v, %+v; want %v, %+v", i, news, n, step.news, step.good)
		}
	}
}
