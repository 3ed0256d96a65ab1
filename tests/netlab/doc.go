// SPDX-License-Identifier: Apache-2.0

// Package netlab is a laboratory for weft: a few nodes, an etcd and pods on
// one machine, made of namespaces, with the real agent and the real CNI chain.
//
// Nothing of a lab is visible to the machine it runs on and nothing of it
// can stay behind, because every piece hangs on one process:
//
//	launcher            the caller: weft-lab, or a test
//	└─ init             PID 1 of new PID, mount and network namespaces
//	   └─ control       the code that uses this package
//	      ├─ etcd       in the lab's network namespace, which is the fabric
//	      ├─ hold n1    a node: network, mount and UTS namespaces of its own
//	      ├─ weftd      in n1's namespaces, with CAP_NET_ADMIN only
//	      └─ ...
//
// All files are on a private tmpfs over /run, all network namespaces are
// reachable only from the private mount namespace, and the fabric has no way
// out. When the launcher ends, however it ends, the kernel kills init and with
// it every process, namespace, device, mount and file of the lab. Two labs
// cannot collide since they share no name.
//
// A program that uses the package calls Stage first thing in main (TestMain
// in a test), because the lab's processes are that program started again.
// Outside, Launch starts the program's control process inside a new lab;
// inside, New builds the network and returns the Lab.
package netlab
