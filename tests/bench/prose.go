// SPDX-License-Identifier: Apache-2.0

package main

// preamble is the beginning of docs/benchmarks.md: how the figures were made.
const preamble = `# Benchmarks

` + "`make bench`" + ` measures what is here and writes this page. A real etcd holds the leases of peers that do not exist; a real
weftd with the manifest's privileges starts on a node of a lab (network namespaces on one machine) and programs a real
kernel. What it does is seen from outside: a netlink monitor that shares no code with the agent stamps every route,
neighbour and forwarding entry that comes; /proc tells CPU time and memory; ip, bridge and nft count the entries. A write
that changes nothing makes no event, so rewrites are also counted by the age at which the kernel confirmed each neighbour.

Times include whatever else the machine did. The nearest peer is flannel v0.28.9, measured on a machine of the same class
with IPv4 only; it was not run beside these figures.

**Node API.** A real kube-apiserver keeps, on the lab's etcd, Nodes that are copies of one that a real kubelet registered: made
by the same writers in the same order, so that the server keeps of each what it keeps of a real one (this is compared), with
all conditions, 50 images and a lease. The agent has its pod's token, bound to its node, under the manifest's role and
admission policy. A heartbeat is the patch of ` + "`nodes/status`" + ` that a kubelet makes when nothing has changed: once in 5 minutes for each
Node, and then ten times as often. Kubelets' Leases, which the agent does not watch, are not renewed. Bytes are payload of the
agent's TCP connections as the kernel counts them. Writes are all that netlink announces of links, addresses, neighbours,
routes, rules, nexthops and nftables, and neighbours that were confirmed anew; the same monitors then hear of changes. The
server compresses no watch, as none does before 1.37, nor later once a watch has been renewed.

**Data path.** Six pairs of nodes in one lab, each on a cable (veth) of its own: weft with two peers, weft with many, weft
with ` + "`--device-gro=false`" + `, weft with ` + "`--ingress-guard=off`" + `, weft with two peers once more (what differs between those
two is noise), and a pair programmed by hand the way flannel v0.28 does (device, neighbour, forwarding entry and onlink
route for each peer, its nftables rules, the bridge its CNI plugin makes). ` + "`host`" + ` is node to node over the first pair's
cable, through weft's rules. All nodes have kube-proxy's nftables chains (50 Services), as the nearest peer's nodes had
when it was measured; groups that say "no kube-proxy" are without. On all nodes bridges call the rules for IP
(bridge-nf-call-iptables=1), without which flannel does not start; rows that say =0 are without. One sample of each in a
round, in an order drawn for it; a ratio is the median over pairs of samples of one round. Sender and receiver of a stream
have a CPU each; both ends of round trips and connections share one, and no CPU sleeps meanwhile. Connections end with a
reset, so no TIME_WAIT piles up. A segmented wire has TSO and GSO off and GRO on, one without merging GRO off too. A
packet's cost is the sender's time for 250 of them, as far as the receiver's socket. Rows about network policies are of the
first pair: both pods are isolated both ways by all of the policies, one of which lets them reach each other and each of the
others lets in and out a pod, a block of addresses and ports; "guarded" is table ` + "`bridge weft_guard`" + ` on top.

Command: ` + "`%s`" + `; %s; %d CPUs, Linux %s, %s.
`
