// SPDX-License-Identifier: Apache-2.0

package subnet

// ConfigNews remembers what was last told of the configuration, for a store
// that reads it again and again.
type ConfigNews struct {
	Good Config // the last valid one
	Err  error  // why the present one is not, else nil
}

// Update takes what was read, and reports whether it is worth telling: another
// valid configuration, a valid one after one that was not, or another reason why
// it is not.
func (n *ConfigNews) Update(cfg Config, err error) bool {
	was := *n
	n.Err = err
	if err != nil {
		return was.Err == nil || was.Err.Error() != err.Error()
	}
	n.Good = cfg
	return was.Err != nil || !was.Good.Equal(cfg)
}
