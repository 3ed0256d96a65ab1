// SPDX-License-Identifier: Apache-2.0

// Package doccmd reads the fenced code blocks of the documentation, so that
// tests run the very commands that a reader is told to type.
//
// A comment on a line of its own marks the block that follows it:
//
//	<!-- test: uninstall -->
//	```sh
//	kubectl delete -f dist/manifests/weft.yaml
//	```
//
// Commands are for `bash -eu`, in the repository's top directory. What is the
// reader's to choose, such as the name of a node, is a variable in them.
package doccmd

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// A Block is one fenced code block.
type Block struct {
	Mark string // what the comment before it says, such as "test: uninstall"; or ""
	Lang string // the word after the fence, such as "sh"; or ""
	Line int    // of the opening fence, from 1
	Text string // without the fences and their indentation, with a newline at the end
}

// mark is a comment that means the next block. Other comments are none.
var mark = regexp.MustCompile(`^\s*<!-- ((?:test: [a-z0-9]+(?:-[a-z0-9]+)*)|printed) -->\s*$`)

// fence opens or closes a block: its indentation, backticks and language.
var fence = regexp.MustCompile("^( *)(```+)([^`]*)$")

// Parse returns the blocks of a Markdown document in their order. A mark that
// no block follows is an error, and so are a block without an end and a name
// that two blocks have.
func Parse(doc string) ([]Block, error) {
	var (
		out    []Block
		open   *Block
		closer string // the fence that ends open
		indent string
		marked string
		at     int // the line of marked
		names  = map[string]int{}
	)
	for i, line := range strings.Split(doc, "\n") {
		n := i + 1
		f := fence.FindStringSubmatch(line)
		switch {
		case open != nil && f != nil && len(f[2]) >= len(closer) && strings.TrimSpace(f[3]) == "":
			out, open = append(out, *open), nil
		case open != nil:
			open.Text += strings.TrimPrefix(line, indent) + "\n"
		case f != nil:
			open = &Block{Mark: marked, Lang: strings.TrimSpace(f[3]), Line: n}
			indent, closer, marked = f[1], f[2], ""
		case marked != "" && strings.TrimSpace(line) != "":
			return nil, fmt.Errorf("line %d: mark %q: want a code block after it, not line %d", at, marked, n)
		default:
			m := mark.FindStringSubmatch(line)
			if m == nil {
				continue
			}
			marked, at = m[1], n
			if was, ok := names[marked]; ok && marked != Printed {
				return nil, fmt.Errorf("line %d: mark %q is on line %d already", n, marked, was)
			}
			names[marked] = n
		}
	}
	switch {
	case open != nil:
		return nil, fmt.Errorf("line %d: the code block has no end", open.Line)
	case marked != "":
		return nil, fmt.Errorf("line %d: mark %q: want a code block after it", at, marked)
	}
	return out, nil
}

// Printed marks a block whose lines weft prints.
const Printed = "printed"

// Name returns what the mark `<!-- test: NAME -->` calls the block, or "".
func (b Block) Name() string {
	name, ok := strings.CutPrefix(b.Mark, "test: ")
	if !ok {
		return ""
	}
	return name
}

// Read parses a file.
func Read(path string) ([]Block, error) {
	doc, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	blocks, err := Parse(string(doc))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return blocks, nil
}

// Commands returns the block of a file that is marked `<!-- test: NAME -->`.
func Commands(path, name string) (string, error) {
	blocks, err := Read(path)
	if err != nil {
		return "", err
	}
	var have []string
	for _, b := range blocks {
		if b.Name() == name && name != "" {
			return b.Text, nil
		}
		if b.Name() != "" {
			have = append(have, b.Name())
		}
	}
	return "", fmt.Errorf("%s: no code block is marked `<!-- test: %s -->`; marked are %q", path, name, have)
}
