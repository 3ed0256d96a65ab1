// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/yaml"

	"weft.dev/weft/internal/kubeapi"
	"weft.dev/weft/subnet"
)

// The ConfigMaps in which kubeadm keeps the pod networks of the cluster that
// it has made (kubeadm's constants.go, v1.37), and kube-proxy those that it
// treats as inside. The first is asked first.
const (
	clusterNamespace = "kube-system"
	kubeadmConfig    = "kubeadm-config"
	kubeProxyConfig  = "kube-proxy"
)

// A cluster is what a cluster says of its pod networks.
type cluster struct {
	networks []clusterNetwork // at most one a family
	silent   []string         // for each source that says nothing of a family, why
	refused  bool             // a source was not ours to read
}

// A clusterNetwork is a pod network, and where it stands. Comparable.
type clusterNetwork struct {
	prefix netip.Prefix
	source string
}

// readCluster reads what the cluster says of those of networks that are open.
// The error is one of an API that does not answer: missing rights, a missing
// ConfigMap and one that nobody understands are an answer.
func (s *Store) readCluster(ctx context.Context, networks []subnet.Network) (cluster, error) {
	var out cluster
	for _, name := range []string{kubeadmConfig, kubeProxyConfig} {
		lacking := func(n subnet.Network) bool {
			return n.Open() && !slices.ContainsFunc(out.networks, func(o clusterNetwork) bool {
				return subnet.FamilyOf(o.prefix.Addr()) == subnet.FamilyOf(n.Prefix.Addr())
			})
		}
		if !slices.ContainsFunc(networks, lacking) {
			break
		}
		data, err := s.readConfigMap(ctx, name)
		var answered apierrors.APIStatus
		switch {
		case errors.As(err, &answered) && (kubeapi.Refused(err) || apierrors.IsNotFound(err)):
			out.refused = out.refused || kubeapi.Refused(err)
		case err != nil:
			return cluster{}, err
		}
		out.add("ConfigMap "+clusterNamespace+"/"+name, name, data, err)
	}
	return out, nil
}

func (s *Store) readConfigMap(ctx context.Context, name string) (map[string]string, error) {
	ctx, cancel := s.call(ctx)
	defer cancel()
	return s.api.configMap(ctx, clusterNamespace, name)
}

// add takes over what source says: data, or why there is none. What a source
// before it has said of a family stands.
func (k *cluster) add(source, name string, data map[string]string, err error) {
	var list []netip.Prefix
	if err == nil {
		list, err = podNetworks(name, data)
	}
	switch {
	case apierrors.IsNotFound(err):
		err = errors.New("not there")
	case err != nil && kubeapi.Refused(err):
		err = errors.New("not ours to read")
	case err == nil && len(list) == 0:
		err = errors.New("names none")
	}
	if err != nil {
		k.silent = append(k.silent, fmt.Sprintf("%s: %s", source, clip(err.Error())))
		return
	}
	k.silent = append(k.silent, fmt.Sprintf("%s: names %v alone", source, list))
	for _, p := range list {
		known := func(n clusterNetwork) bool { return subnet.FamilyOf(n.prefix.Addr()) == subnet.FamilyOf(p.Addr()) }
		if !slices.ContainsFunc(k.networks, known) {
			k.networks = append(k.networks, clusterNetwork{p, source})
		}
	}
}

// podNetworks reads the pod networks in the ConfigMap of that name; none when
// it names none.
func podNetworks(name string, data map[string]string) ([]netip.Prefix, error) {
	if name == kubeadmConfig {
		var c struct {
			Networking struct {
				PodSubnet string `json:"podSubnet"`
			} `json:"networking"`
		}
		if err := yaml.Unmarshal([]byte(data["ClusterConfiguration"]), &c); err != nil {
			return nil, fmt.Errorf("ClusterConfiguration: %w", err)
		}
		return networkList("networking.podSubnet", c.Networking.PodSubnet)
	}
	var c struct {
		ClusterCIDR string `json:"clusterCIDR"`
	}
	if err := yaml.Unmarshal([]byte(data["config.conf"]), &c); err != nil {
		return nil, fmt.Errorf("config.conf: %w", err)
	}
	return networkList("clusterCIDR", c.ClusterCIDR)
}

// networkList reads prefixes joined with commas, at most one of each family.
func networkList(key, text string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for word := range strings.SplitSeq(text, ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		p, err := netip.ParsePrefix(word)
		if err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%s %q: want a prefix of each family, such as 10.244.0.0/16", key, text)
		}
		same := func(o netip.Prefix) bool { return subnet.FamilyOf(o.Addr()) == subnet.FamilyOf(p.Addr()) }
		if slices.ContainsFunc(out, same) {
			return nil, fmt.Errorf("%s %q: want one prefix of each family", key, text)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}
