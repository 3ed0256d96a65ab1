// SPDX-License-Identifier: Apache-2.0

package main

import _ "embed"

// The report's text around the tables.
var (
	//go:embed preamble.md
	preamble string
	//go:embed afterword.md
	afterword string
)
