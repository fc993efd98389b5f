/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * A host: between the tunnel and the VMs' taps. Hosts keep no state about flows, so a move is a change of one `ports` entry.
 *
 *   from_tunnel (ingress of the tunnel device): VNI -> LOCAL: into the tap; FORWARD: on to the host where the VM is now
 *   from_vm (ingress of a tap): the VM's packets into the tunnel, to the edge; answers ARP for the gateway
 *
 * What the agent writes back into a tap (frames that the tap held for a VM which did not come) comes to from_vm as well: it is
 * addressed to the VM, and goes to `forward`.
 */
#include "packet.h"

#define VMS_MAX 4096
#define GATEWAY bpf_htonl(0xa9fe0101) /* 169.254.1.1 */
#define ARP_REQUEST bpf_htons(1)
#define ARP_REPLY bpf_htons(2)

char LICENSE[] SEC("license") = "GPL";

static const __u8 GATEWAY_MAC[ETH_ALEN] = { 0x02, 0, 0, 0, 0, 0x01 };

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, VMS_MAX);
	__type(key, __u32);
	__type(value, struct vm_port);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, VMS_MAX);
	__type(key, __u32); /* ifindex */
	__type(value, __u32); /* VNI */
} taps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, VMS_MAX);
	__type(key, __u32);
	__type(value, struct port_stats);
} stats SEC(".maps");

struct arp {
	__be16 hardware, network;
	__u8 hardware_bytes, network_bytes;
	__be16 operation;
	__u8 sender_mac[ETH_ALEN];
	__be32 sender;
	__u8 target_mac[ETH_ALEN];
	__be32 target;
} __attribute__((packed));

/* Answer the VM's question for the gateway, whose address is the same on every host. */
static __always_inline int answer_arp(struct __sk_buff *skb)
{
	struct ethhdr ethernet;
	struct arp arp;

	if (bpf_skb_load_bytes(skb, 0, &ethernet, sizeof(ethernet)) || bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)))
		return TC_ACT_SHOT;
	if (arp.operation != ARP_REQUEST || arp.target != GATEWAY)
		return TC_ACT_SHOT;
	__builtin_memcpy(ethernet.h_dest, arp.sender_mac, ETH_ALEN);
	__builtin_memcpy(ethernet.h_source, GATEWAY_MAC, ETH_ALEN);
	arp.operation = ARP_REPLY;
	__builtin_memcpy(arp.target_mac, arp.sender_mac, ETH_ALEN);
	arp.target = arp.sender;
	__builtin_memcpy(arp.sender_mac, GATEWAY_MAC, ETH_ALEN);
	arp.sender = GATEWAY;
	bpf_skb_store_bytes(skb, 0, &ethernet, sizeof(ethernet), 0);
	bpf_skb_store_bytes(skb, ETH_HLEN, &arp, sizeof(arp), 0);
	return bpf_redirect(skb->ifindex, 0);
}

SEC("tc")
int from_vm(struct __sk_buff *skb)
{
	const struct node_config *node = config();
	__u32 ifindex = skb->ifindex, vni;
	const struct vm_port *port;
	struct port_stats *stat;
	const __u32 *found;
	struct packet p;
	int wrong;

	found = bpf_map_lookup_elem(&taps, &ifindex);
	if (!node || !found)
		return drop(COUNT_DROP_UNKNOWN_VM);
	vni = *found;
	port = bpf_map_lookup_elem(&ports, &vni);
	stat = bpf_map_lookup_elem(&stats, &vni);
	if (!port || !stat)
		return drop(COUNT_DROP_UNKNOWN_VM);
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return answer_arp(skb);
	wrong = parse(skb, ETH_HLEN, &p);
	if (wrong == COUNT_DROP_NOT_IPV4)
		return drop(wrong);
	if (p.target == port->inner && port->forward) {
		__sync_fetch_and_add(&stat->relayed_packets, 1);
		return to_tunnel(skb, node, vni, port->forward);
	}
	if (p.source != port->inner)
		return drop(COUNT_DROP_WRONG_ADDRESS);
	if (port->state == PORT_BLOCKED) {
		__sync_fetch_and_add(&stat->blocked_packets, 1);
		return drop(COUNT_DROP_BLOCKED);
	}
	clamp_mss(skb, &p, port->mss);
	if (!stat->first_from_vm_ns)
		stat->first_from_vm_ns = bpf_ktime_get_ns();
	__sync_fetch_and_add(&stat->from_vm_packets, 1);
	__sync_fetch_and_add(&stat->from_vm_bytes, skb->len);
	return to_tunnel(skb, node, vni, port->edge);
}

static __always_inline int into_tap(struct __sk_buff *skb, const struct vm_port *port)
{
	struct ethhdr ethernet;

	__builtin_memcpy(ethernet.h_dest, port->mac, ETH_ALEN);
	__builtin_memcpy(ethernet.h_source, GATEWAY_MAC, ETH_ALEN);
	ethernet.h_proto = bpf_htons(ETH_P_IP);
	if (add_ethernet(skb) || bpf_skb_store_bytes(skb, 0, &ethernet, sizeof(ethernet), 0))
		return drop(COUNT_DROP_ERROR);
	return bpf_redirect(port->tap_ifindex, 0);
}

SEC("tc")
int from_tunnel(struct __sk_buff *skb)
{
	const struct node_config *node = config();
	struct bpf_tunnel_key key = {};
	const struct vm_port *port;
	struct port_stats *stat;
	struct packet p;
	__be32 remote;
	__u32 vni;
	int wrong;

	if (!node || bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))
		return drop(COUNT_DROP_ERROR);
	vni = key.tunnel_id;
	remote = bpf_htonl(key.remote_ipv4);
	port = bpf_map_lookup_elem(&ports, &vni);
	stat = bpf_map_lookup_elem(&stats, &vni);
	if (!port || !stat)
		return drop(COUNT_DROP_UNKNOWN_VM);
	if (remote != port->edge && (!port->peer || remote != port->peer))
		return drop(COUNT_DROP_WRONG_SOURCE);
	wrong = parse(skb, 0, &p);
	if (wrong == COUNT_DROP_NOT_IPV4)
		return drop(wrong);
	if (p.target != port->inner)
		return drop(COUNT_DROP_WRONG_ADDRESS);
	if (port->state == PORT_FORWARD) {
		__sync_fetch_and_add(&stat->forwarded_packets, 1);
		return to_tunnel(skb, node, vni, port->forward);
	}
	if (port->state != PORT_LOCAL) {
		__sync_fetch_and_add(&stat->blocked_packets, 1);
		return drop(COUNT_DROP_BLOCKED);
	}
	clamp_mss(skb, &p, port->mss);
	__sync_fetch_and_add(&stat->to_vm_packets, 1);
	__sync_fetch_and_add(&stat->to_vm_bytes, skb->len);
	return into_tap(skb, port);
}
