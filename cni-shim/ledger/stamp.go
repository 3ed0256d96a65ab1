// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Phase says how far an attachment has come.
type Phase string

// The phases. A reader that meets another one, from a later version, leaves
// the attachment alone until the next boot.
const (
	Adding   Phase = "adding"   // ADD has begun; it has not been answered
	Added    Phase = "added"    // ADD has succeeded; the answer follows
	Deleting Phase = "deleting" // DEL has begun
)

// StampKey is the field of a state that holds its stamp. The rest of a state
// is the delegate's configuration. A plugin that knows no stamps hands it to
// the delegate, which ignores it, as plugins ignore all fields they do not
// know.
const StampKey = "weft.dev/attachment"

// Stamp is what the plugin writes down about an attachment beside the
// delegate's configuration.
type Stamp struct {
	Phase Phase  `json:"phase"`
	Boot  string `json:"boot"` // BootID when it was written
	// Netns is CNI_NETNS at ADD. The file may be another's by now:
	// NetnsInode says which one it was, 0 when unknown.
	Netns      string `json:"netns,omitempty"`
	NetnsInode uint64 `json:"netnsInode,omitempty"`
	// NetnsID is the id of the pod's network namespace in the node's
	// (RTM_GETNSID, linux/net_namespace.h), nil when unknown. It is known
	// before the first veth, and the veth names it (IFLA_LINK_NETNSID).
	NetnsID *int `json:"netnsID,omitempty"`
	// Ports are the node's ends of the veths of an attachment to a bridge,
	// known once it is added.
	Ports []string `json:"ports,omitempty"`
	// Addrs are the addresses that ADD answered with, MAC what the pod's
	// interface has, as the delegate wrote it.
	Addrs []netip.Addr `json:"addrs,omitempty"`
	MAC   string       `json:"mac,omitempty"`
	// Time is when ADD began, by the node's clock; zero in older states.
	Time time.Time `json:"time,omitzero"`
	// Pod is who Kubernetes says it attaches, nil for other runtimes.
	Pod *Pod `json:"pod,omitempty"`
}

// Pod names a pod of Kubernetes. UID is empty where the runtime does not tell.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid,omitempty"`
}

// DefaultBootID is where Linux tells its boot id: a UUID that is drawn at each
// boot and the same in all namespaces (proc_sys_kernel(5)).
const DefaultBootID = "/proc/sys/kernel/random/boot_id"

// BootID reads the boot id from path, "" for DefaultBootID.
func BootID(path string) (string, error) {
	if path == "" {
		path = DefaultBootID
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	id := strings.TrimSpace(string(data))
	if id == "" {
		return "", fmt.Errorf("boot id: %s is empty", path)
	}
	return id, nil
}

// Encode returns the state of an attachment: the delegate's configuration,
// which must be a JSON object, with the stamp in it.
func Encode(conf []byte, s Stamp) ([]byte, error) {
	fields, err := object(conf)
	if err != nil {
		return nil, err
	}
	stamp, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("stamp: %w", err)
	}
	fields[StampKey] = stamp
	return json.Marshal(fields)
}

// Decode takes a state apart. stamped is false for one without a stamp that
// this version understands; conf is right then too. The error is for data
// that is no JSON object: a state that a power failure has torn.
func Decode(data []byte) (conf []byte, s Stamp, stamped bool, err error) {
	fields, err := object(data)
	if err != nil {
		return nil, Stamp{}, false, err
	}
	raw, ok := fields[StampKey]
	if !ok {
		return data, Stamp{}, false, nil
	}
	delete(fields, StampKey)
	if conf, err = json.Marshal(fields); err != nil {
		return nil, Stamp{}, false, err
	}
	if json.Unmarshal(raw, &s) != nil || s.Phase == "" || s.Boot == "" {
		return conf, Stamp{}, false, nil
	}
	return conf, s, true, nil
}

func object(data []byte) (map[string]json.RawMessage, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, err
	}
	if fields == nil {
		return nil, errors.New("want an object")
	}
	return fields, nil
}

// State is the file of one attachment.
type State struct {
	dir string
	key Key
}

// StateOf names the state of attachment k below stateDir. It fails for a key
// that CNI does not allow or that is too long for a file name.
func StateOf(stateDir string, k Key) (State, error) {
	if !k.valid() {
		return State{}, fmt.Errorf("attachment %.80q of %d bytes: want a container id of at most %d letters, digits, '_', '.' and '-', the first a letter or digit, and an interface name of at most %d bytes without '/', ':' and white space",
			k, len(k.String()), MaxContainerID, maxIfName)
	}
	return State{stateDir, k}, nil
}

// Path returns the name of the file.
func (s State) Path() string { return filepath.Join(s.dir, s.key.String()) }

// temp is where Save writes. It is the same each time, so that a save that was
// killed leaves nothing that the next Save or Remove does not take away.
func (s State) temp() string { return filepath.Join(s.dir, flightDir, s.key.String()+newSuffix) }

// Save stores data, readable by root alone: it may hold what users keep in
// CNI arguments. The file is complete or absent to whoever reads it while the
// machine is up. It is not forced to disk, which would cost each ADD several
// milliseconds: what a power failure tears is treated as missing. The caller
// holds the attachment's lock.
func (s State) Save(data []byte) error {
	if err := os.MkdirAll(filepath.Dir(s.temp()), 0o700); err != nil {
		return fmt.Errorf("create dataDir: %w", err)
	}
	if err := os.WriteFile(s.temp(), data, 0o600); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	if err := os.Rename(s.temp(), s.Path()); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	return nil
}

// Load returns what Save stored; fs.ErrNotExist when there is nothing.
func (s State) Load() ([]byte, error) {
	data, err := os.ReadFile(s.Path())
	if err != nil {
		return nil, fmt.Errorf("load state: %w", err)
	}
	return data, nil
}

// Remove forgets the attachment. Nothing to forget is success. The caller
// holds the attachment's lock.
func (s State) Remove() error {
	for _, path := range []string{s.temp(), s.Path()} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove state: %w", err)
		}
	}
	return nil
}

// delegation is what a state's configuration says about where it works.
type delegation struct {
	Network string `json:"name"`
	Plugin  string `json:"type"`
	Bridge  string `json:"bridge"`
	IPAM    struct {
		Type    string `json:"type"`
		DataDir string `json:"dataDir"`
	} `json:"ipam"`
}

// delegationOf reads conf. Fields of a wrong type count as absent.
func delegationOf(conf []byte) delegation {
	var d delegation
	if json.Unmarshal(conf, &d) != nil {
		return delegation{}
	}
	if d.Plugin == "bridge" && d.Bridge == "" {
		d.Bridge = DefaultBridge
	}
	return d
}

// judged reports whether a sweep can tell the living from the dead in d: a
// veth on the bridge stands for the attachment, and host-local's files for its
// addresses. What other delegates hold, only they can free.
func (d delegation) judged(bridge string) bool {
	return d.Plugin == "bridge" && d.Bridge == bridge && d.IPAM.Type == "host-local"
}
