// SPDX-License-Identifier: Apache-2.0

package subnet

import "slices"

// A Roll is a set of leases by key from which a store makes its snapshots. It
// hands out parts of PartSize leases, of which those without a change stay the
// same in memory. The zero value is empty. It is not safe for concurrent use.
type Roll struct {
	keys   []string
	leases []Lease
	index  map[string]int // into both, by key
	parts  [][]Lease      // as last handed out; nil where something changed
}

// Put makes l the lease at key and reports whether that is a change. It keeps l.
func (r *Roll) Put(key string, l Lease) bool {
	i, known := r.index[key]
	if known && r.leases[i].Equal(l) {
		return false
	}
	if !known {
		if r.index == nil {
			r.index = map[string]int{}
		}
		i = len(r.keys)
		r.index[key] = i
		r.keys, r.leases = append(r.keys, key), append(r.leases, l)
	}
	r.leases[i] = l
	r.touch(i)
	return true
}

// Remove takes the lease at key out, and reports whether there was one.
func (r *Roll) Remove(key string) bool {
	i, known := r.index[key]
	if !known {
		return false
	}
	last := len(r.keys) - 1
	r.touch(i)
	r.touch(last)
	r.keys[i], r.leases[i] = r.keys[last], r.leases[last]
	r.index[r.keys[i]] = i
	delete(r.index, key)
	r.keys[last], r.leases[last] = "", Lease{}
	r.keys, r.leases = r.keys[:last], r.leases[:last]
	return true
}

// Has reports whether there is a lease at key.
func (r *Roll) Has(key string) bool {
	_, known := r.index[key]
	return known
}

// Leases returns the leases. They do not change when the Roll does.
func (r *Roll) Leases() Leases {
	r.parts = r.parts[:min(len(r.parts), (len(r.keys)+PartSize-1)/PartSize)]
	for i := range r.parts {
		if r.parts[i] == nil {
			from := i * PartSize
			r.parts[i] = slices.Clone(r.leases[from:min(from+PartSize, len(r.leases))])
		}
	}
	return LeasesIn(slices.Clone(r.parts))
}

// touch notes that the i-th lease changed.
func (r *Roll) touch(i int) {
	for len(r.parts) <= i/PartSize {
		r.parts = append(r.parts, nil)
	}
	r.parts[i/PartSize] = nil
}
