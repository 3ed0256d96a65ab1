// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"regexp"
	"strings"
	"unicode"
)

// Key names one attachment: an interface of a container. CNI allows a
// container several.
type Key struct {
	ContainerID string
	IfName      string // empty where an old host-local wrote none
}

// String returns the name of the attachment's state, ID:IFNAME. Neither part
// can hold a colon, so the name is unambiguous.
func (k Key) String() string { return k.ContainerID + ":" + k.IfName }

// MaxContainerID is the longest container id with a state, in bytes. With an
// interface name (15 bytes), a colon and a suffix it stays below NAME_MAX
// (linux/limits.h, 255).
const MaxContainerID = 200

// maxIfName is the longest name of an interface: IFNAMSIZ (linux/if.h)
// without the terminating zero.
const maxIfName = 15

// containerID is what the CNI specification 1.1.0 allows, section 3,
// "Attachment Parameters".
var containerID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`)

// ParseKey reads the name of a state. It reports false for what is none.
func ParseKey(name string) (Key, bool) {
	id, ifName, ok := strings.Cut(name, ":")
	k := Key{id, ifName}
	return k, ok && k.valid()
}

// valid reports whether k can have a state, which excludes every name that
// would lead out of its directory.
func (k Key) valid() bool {
	return len(k.ContainerID) <= MaxContainerID && containerID.MatchString(k.ContainerID) && validIfName(k.IfName)
}

func validIfName(name string) bool {
	return name != "" && len(name) <= maxIfName && name != "." && name != ".." &&
		!strings.ContainsFunc(name, func(r rune) bool { return r == '/' || r == ':' || r == 0 || unicode.IsSpace(r) })
}
