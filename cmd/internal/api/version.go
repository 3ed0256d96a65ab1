// SPDX-License-Identifier: Apache-2.0

package api

import "runtime/debug"

// Version is what this program was built from: the module version that the
// go command derives from the repository (a tag, or a pseudo-version of the
// commit, with +dirty for uncommitted changes), or "unknown" for a build
// outside a repository.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return versionOf(info)
}

func versionOf(info *debug.BuildInfo) string {
	const unstamped = "(devel)" // runtime/debug: of a build without a version
	if v := info.Main.Version; v != "" && v != unstamped {
		return v
	}
	return "unknown"
}
