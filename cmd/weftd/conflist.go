// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
)

// bridge is the device that our CNI configuration attaches pods to.
const bridge = "cni0"

// damagedSuffix names the copy of a file that was no JSON document. Runtimes
// read *.conf, *.conflist and *.json, so they leave it alone.
const damagedSuffix = ".damaged"

// editTime is how long a file that does not parse is left alone: an editor
// may be in the middle of writing it.
const editTime = 15 * time.Second

// writeConflist installs the CNI configuration unless the same is there. An
// operator's own edits are kept: the file is only written when it is missing,
// is one that weftd wrote (it carries our mark), or is no JSON document. That
// last one may be a torn write of ours or a slip of an operator's; either way
// no runtime can use it, and a copy of it stays, whose path is returned.
func writeConflist(o *options) (kept string, err error) {
	want := conflist(o)
	have, err := os.ReadFile(o.CNIConf)
	switch {
	case err == nil && bytes.Equal(have, want):
		return "", nil
	case err == nil && !json.Valid(have):
		if settled, err := settledFile(o.CNIConf); err != nil || !settled {
			return "", err
		}
		kept = o.CNIConf + damagedSuffix
		if err := renameio.WriteFile(kept, have, 0o600); err != nil {
			return "", fmt.Errorf("keep a copy of the damaged CNI configuration: %w", err)
		}
	case err == nil && !generated(have):
		return "", nil
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("read the CNI configuration: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(o.CNIConf), 0o755); err != nil {
		return kept, fmt.Errorf("write the CNI configuration: %w", err)
	}
	if err := renameio.WriteFile(o.CNIConf, want, 0o644); err != nil {
		return kept, fmt.Errorf("write the CNI configuration: %w", err)
	}
	return kept, nil
}

// settledFile reports whether nobody has written to path for editTime. A time
// of change in the future tells nothing and counts as long ago.
func settledFile(path string) (bool, error) {
	info, err := os.Stat(path)
	if err != nil {
		return false, fmt.Errorf("read the CNI configuration: %w", err)
	}
	age := time.Since(info.ModTime())
	return age < 0 || age >= editTime, nil
}

// marker is the key by which weftd knows a conflist as its own. CNI ignores
// keys it does not know.
const marker = "weft.generated"

func generated(conf []byte) bool {
	var c map[string]json.RawMessage
	return json.Unmarshal(conf, &c) == nil && c[marker] != nil
}

// conflist is the CNI configuration: network weft (flannel: cbr0), bridge
// cni0, no masquerading by the bridge, which would hide the pods of a node
// behind its address inside the network too: weftd does it, or nobody should.
// The bridge takes a new IPv4 gateway address if the node had to take another
// subnet (forceAddress); what it keeps of the old one dropGateways removes.
func conflist(o *options) []byte {
	type object map[string]any
	weft := object{
		"type": "weft", "subnetFile": o.SubnetFile, "agentSocket": o.Socket, "dataDir": o.CNIDataDir,
		"delegate": object{"bridge": bridge, "isDefaultGateway": true, "hairpinMode": true, "ipMasq": false, "forceAddress": true},
	}
	if o.enforces() {
		weft["onAgentDown"] = o.OnAgentDown
	}
	b, err := json.MarshalIndent(object{
		"cniVersion": "1.0.0", "cniVersions": []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"},
		"name": presetFor(o.FlannelCompat).cniNetwork, marker: "edit freely after removing this line",
		"plugins": []object{
			weft,
			{"type": "portmap", "capabilities": object{"portMappings": true}},
		},
	}, "", "  ")
	if err != nil {
		panic("bug: a constant document does not encode: " + err.Error())
	}
	return append(b, '\n')
}
