/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the BPF programs and user space share: the keys and values of all maps. `architect/conduit/layout.py` repeats each struct,
 * and a test compares sizes and offsets. Addresses and ports are in network byte order, everything else in the machine's.
 * A change here needs a new LAYOUT_VERSION: pinned maps of another version are refused by name.
 */
#ifndef ARCHITECT_LAYOUT_H
#define ARCHITECT_LAYOUT_H

#include <linux/types.h>

#define LAYOUT_VERSION 2
#define TUNNEL_PORT 4790

/* Who made the pins, and where packets go in and out. One entry, key 0, on hosts and edges alike. */
struct node_config {
	__u64 netns; /* inode of the network namespace: pins of a namespace that is gone are stale */
	__u32 layout_version;
	__u32 tunnel_ifindex;
	__be32 address; /* outer source of our tunnel packets */
	__u32 tunnel_payload_bytes; /* the largest inner packet that the underlay carries */
};

/* ---- host ---- */

enum port_state {
	PORT_BLOCKED = 0, /* neither in nor out */
	PORT_LOCAL = 1, /* the VM is here, or about to be: its tap takes and holds packets */
	PORT_FORWARD = 2, /* the VM has moved: what still comes goes to `forward`; what it still sends goes out */
};

/* A VM on a host, by VNI. `forward` also takes what is written back into the tap (frames held for a VM that did not come). */
struct vm_port {
	__u32 state;
	__u32 tap_ifindex;
	__be32 inner;
	__be32 edge;
	__be32 forward;
	__be32 peer; /* the other host of a move, whose forwarded packets are taken too; 0: none */
	__u16 mss;
	__u8 mac[6];
};

struct port_stats {
	__u64 to_vm_packets;
	__u64 to_vm_bytes;
	__u64 from_vm_packets;
	__u64 from_vm_bytes;
	__u64 forwarded_packets;
	__u64 relayed_packets;
	__u64 blocked_packets;
	__u64 first_from_vm_ns; /* CLOCK_MONOTONIC of the first packet that the VM sent here; 0: none yet */
};

/* ---- edge ---- */

/* A VM, by VNI. */
struct edge_vm {
	__be32 inner;
	__be32 host; /* 0: nowhere yet */
	__be32 previous; /* a second host whose packets are still taken; 0: none */
	__be32 vip; /* its public address */
	__u32 is_tracked; /* after a reset of flows: TCP of a published port passes only if its SYN was seen since */
};

/* A published port. VNI 0 keeps a port for the edge's own kernel. */
struct service_key {
	__be32 vip;
	__be16 port;
	__u8 protocol;
	__u8 pad;
};

struct service {
	__u32 vni;
	__be16 port; /* in the guest */
	__u16 pad;
};

/* The way back: which public port a guest port is published as. */
struct reverse_key {
	__u32 vni;
	__be16 port;
	__u8 protocol;
	__u8 pad;
};

/* Flows that VMs open, as the VM's packets and as the answers see them. For ICMP echo the id is `port`, `remote_port` is 0. */
struct flow_out_key {
	__u32 vni;
	__be32 remote;
	__be16 port;
	__be16 remote_port;
	__u8 protocol;
	__u8 pad[3];
};

struct flow_in_key {
	__be32 vip;
	__be32 remote;
	__be16 port;
	__be16 remote_port;
	__u8 protocol;
	__u8 pad[3];
};

enum flow_bits {
	FLOW_ANSWERED = 1, /* a packet came back */
	FLOW_FIN = 2,
	FLOW_RESET = 4,
};

struct flow_out {
	__u64 seen_ns; /* CLOCK_MONOTONIC of the last packet this way */
	__be32 vip;
	__be16 port; /* public */
	__u16 bits;
};

struct flow_in {
	__u64 seen_ns;
	__u32 vni;
	__be16 port; /* in the guest */
	__u16 bits;
};

/* A TCP connection to a published port whose SYN was seen. The value is the time in ns, for a tracked VM of its last packet. */
struct session_key {
	__u32 vni;
	__be32 remote;
	__be16 port; /* in the guest */
	__be16 remote_port;
};

/* A fragmented datagram, as its first fragment told: the later ones have no ports. */
struct fragment_key {
	__be32 source;
	__be32 target;
	__be16 id;
	__u8 protocol;
	__u8 pad;
};

struct fragment_ports {
	__be16 source;
	__be16 target;
};

/* Why a packet was dropped, or what else is counted; index of the `counters` map. `layout.py` has the names in this order. */
enum counter {
	COUNT_TO_VM,
	COUNT_FROM_VM,
	COUNT_HAIRPIN,
	COUNT_FORWARDED,
	COUNT_DROP_UNKNOWN_VM,
	COUNT_DROP_WRONG_SOURCE, /* outer source is not the VM's host, or edge */
	COUNT_DROP_WRONG_ADDRESS, /* inner source or target is not the VM's */
	COUNT_DROP_NOT_IPV4,
	COUNT_DROP_FRAGMENT, /* a later fragment whose first one was not seen */
	COUNT_DROP_PROTOCOL,
	COUNT_DROP_BLOCKED,
	COUNT_DROP_NO_HOST,
	COUNT_DROP_NO_SERVICE,
	COUNT_DROP_NO_FLOW, /* TCP that is no SYN and belongs to no flow */
	COUNT_DROP_NO_PUBLIC_PORT,
	COUNT_DROP_FLOWS_FULL,
	COUNT_DROP_NO_ROUTE,
	COUNT_DROP_TOO_BIG,
	COUNT_DROP_ERROR,
	COUNT_RESET_SENT,
	COUNT_PACKET_TOO_BIG_SENT,
	COUNTER_COUNT,
};

#endif
