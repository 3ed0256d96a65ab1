// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/utils"
)

// maxContainerID is the longest container id that ADD accepts, in bytes. With
// an interface name (15 bytes), a separator and the suffix of a file being
// written it stays below NAME_MAX (linux/limits.h, 255).
const maxContainerID = 200

// state is the file that remembers what one attachment delegated to. Two
// attachments of one container (Multus) have two files.
type state struct {
	dir  string
	path string
}

// stateOf names the state of an interface of a container. It fails for ids
// that CNI does not allow, which include everything that could leave dir.
func stateOf(dir, containerID, ifName string) (state, error) {
	if err := utils.ValidateContainerID(containerID); err != nil {
		return state{}, fmt.Errorf("CNI_CONTAINERID %q: want letters, digits, '_', '.' and '-', the first a letter or digit", containerID)
	}
	if len(containerID) > maxContainerID {
		return state{}, fmt.Errorf("CNI_CONTAINERID %.20q...: has %d bytes, want at most %d", containerID, len(containerID), maxContainerID)
	}
	if err := utils.ValidateInterfaceName(ifName); err != nil {
		return state{}, fmt.Errorf("CNI_IFNAME %q: %w", ifName, err)
	}
	// Neither part can hold a colon, so the name is unambiguous.
	return state{dir: dir, path: filepath.Join(dir, containerID+":"+ifName)}, nil
}

// temp is where save writes. It is the same each time, so that a save that was
// killed leaves nothing that the next save or remove does not take away.
func (s state) temp() string { return s.path + ".tmp" }

// save stores conf, readable by root alone: it may hold what users keep in
// CNI arguments. The file is complete or absent to whoever reads it while the
// machine is up. It is not forced to disk, which would cost each ADD several
// milliseconds: what a power failure tears is treated as missing.
func (s state) save(conf []byte) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("create dataDir: %w", err)
	}
	if err := os.WriteFile(s.temp(), conf, 0o600); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	if err := os.Rename(s.temp(), s.path); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	return nil
}

// load returns what save stored. It fails with fs.ErrNotExist when there is
// nothing, and also when the content is not a configuration.
func (s state) load() ([]byte, error) {
	data, err := os.ReadFile(s.path)
	if err != nil {
		return nil, fmt.Errorf("load state: %w", err)
	}
	var o object
	if err := json.Unmarshal(data, &o); err != nil || delegateType(data) == "" {
		return nil, fmt.Errorf("load state: %s holds no delegate configuration", s.path)
	}
	return data, nil
}

// remove forgets the attachment. Nothing to forget is success.
func (s state) remove() error {
	for _, path := range []string{s.temp(), s.path} {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("remove state: %w", err)
		}
	}
	return nil
}
