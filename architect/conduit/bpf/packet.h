/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Packets as both programs see them: parse, rewrite addresses and ports with checksums kept (CHECKSUM_PARTIAL included), clamp MSS,
 * enter and leave the tunnel. The tunnel itself is the kernel's vxlan device (GPE, collect_md): it builds and takes apart the outer
 * headers, with segmentation offload both ways; here is only which VM and which host.
 */
#ifndef ARCHITECT_PACKET_H
#define ARCHITECT_PACKET_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <stddef.h>

#include "layout.h"

#define IP_MORE_FRAGMENTS 0x2000
#define IP_OFFSET_MASK 0x1fff
#define TCP_FLAG_FIN 0x01
#define TCP_FLAG_SYN 0x02
#define TCP_FLAG_RST 0x04
#define TCP_FLAG_ACK 0x10
#define ICMP_TYPE_ECHO_REPLY 0
#define ICMP_TYPE_ECHO 8
#define TCP_OPTIONS_MAX 12

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct node_config);
} node SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTER_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

struct packet {
	__u32 l3; /* offsets in the skb */
	__u32 l4;
	__u32 tcp_header_bytes;
	__u32 bytes; /* IP total length: of one packet, or of a super-packet */
	__be32 source;
	__be32 target;
	__be16 source_port; /* ICMP echo request: its id */
	__be16 target_port; /* ICMP echo reply: its id */
	__be16 id;
	__u8 protocol;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 fragment;
};

enum fragment {
	FRAGMENT_NONE,
	FRAGMENT_FIRST,
	FRAGMENT_LATER, /* neither ports nor checksum in it */
};

static __always_inline void count(__u32 which)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &which);

	if (counter)
		*counter += 1;
}

static __always_inline int drop(__u32 why)
{
	count(why);
	return TC_ACT_SHOT;
}

static __always_inline const struct node_config *config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&node, &zero);
}

/* Read ports, flags and ICMP ids behind the IP header. 0, or the counter that says what is wrong. */
static __always_inline int parse_transport(struct __sk_buff *skb, struct packet *p)
{
	__u8 tcp[2];
	struct {
		__u8 type, code;
		__be16 sum, id;
	} icmp;
	struct {
		__be16 source, target;
	} ports;

	if (p->protocol == IPPROTO_ICMP) {
		if (bpf_skb_load_bytes(skb, p->l4, &icmp, sizeof(icmp)))
			return COUNT_DROP_PROTOCOL;
		p->icmp_type = icmp.type;
		p->source_port = icmp.type == ICMP_TYPE_ECHO ? icmp.id : 0;
		p->target_port = icmp.type == ICMP_TYPE_ECHO_REPLY ? icmp.id : 0;
		return 0;
	}
	if (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP)
		return COUNT_DROP_PROTOCOL;
	if (bpf_skb_load_bytes(skb, p->l4, &ports, sizeof(ports)))
		return COUNT_DROP_PROTOCOL;
	p->source_port = ports.source;
	p->target_port = ports.target;
	if (p->protocol == IPPROTO_TCP) {
		if (bpf_skb_load_bytes(skb, p->l4 + 12, tcp, sizeof(tcp)))
			return COUNT_DROP_PROTOCOL;
		p->tcp_header_bytes = (tcp[0] >> 4) * 4;
		p->tcp_flags = tcp[1];
	}
	return 0;
}

/* Read the IPv4 packet whose IP header is at `l3`; a later fragment gets no ports here. 0, or the counter that says what is wrong with it. */
static __always_inline int parse(struct __sk_buff *skb, __u32 l3, struct packet *p)
{
	struct iphdr ip;

	__builtin_memset(p, 0, sizeof(*p));
	if (skb->protocol != bpf_htons(ETH_P_IP) || bpf_skb_load_bytes(skb, l3, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
		return COUNT_DROP_NOT_IPV4;
	p->l3 = l3;
	p->l4 = l3 + ip.ihl * 4;
	p->bytes = bpf_ntohs(ip.tot_len);
	p->source = ip.saddr;
	p->target = ip.daddr;
	p->protocol = ip.protocol;
	p->id = ip.id;
	if (ip.frag_off & bpf_htons(IP_OFFSET_MASK)) {
		p->fragment = FRAGMENT_LATER;
		return 0;
	}
	p->fragment = ip.frag_off & bpf_htons(IP_MORE_FRAGMENTS) ? FRAGMENT_FIRST : FRAGMENT_NONE;
	return parse_transport(skb, p);
}

static __always_inline __u32 checksum_offset(const struct packet *p)
{
	return p->l4 + (p->protocol == IPPROTO_TCP ? 16 : p->protocol == IPPROTO_UDP ? 6 : 2);
}

/* BPF_F_MARK_MANGLED_0 keeps a UDP checksum of 0 ("none") as it is. */
static __always_inline __u64 checksum_flags(const struct packet *p)
{
	return p->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
}

static __always_inline int rewrite_address(struct __sk_buff *skb, const struct packet *p, __u32 offset, __be32 old, __be32 new)
{
	__u64 flags = checksum_flags(p) | BPF_F_PSEUDO_HDR | sizeof(new);

	if (old == new)
		return 0;
	if (p->protocol != IPPROTO_ICMP && p->fragment != FRAGMENT_LATER &&
	    bpf_l4_csum_replace(skb, checksum_offset(p), old, new, flags))
		return -1;
	if (bpf_l3_csum_replace(skb, p->l3 + offsetof(struct iphdr, check), old, new, sizeof(new)))
		return -1;
	return bpf_skb_store_bytes(skb, p->l3 + offset, &new, sizeof(new), 0);
}

static __always_inline int rewrite_port(struct __sk_buff *skb, const struct packet *p, __u32 offset, __be16 old, __be16 new)
{
	if (old == new || p->fragment == FRAGMENT_LATER)
		return 0;
	if (bpf_l4_csum_replace(skb, checksum_offset(p), old, new, checksum_flags(p) | sizeof(new)))
		return -1;
	return bpf_skb_store_bytes(skb, p->l4 + offset, &new, sizeof(new), 0);
}

/* Give the packet another source. 0, or not 0 if the kernel refused. */
static __always_inline int rewrite_source(struct __sk_buff *skb, struct packet *p, __be32 address, __be16 port)
{
	if (rewrite_address(skb, p, offsetof(struct iphdr, saddr), p->source, address) ||
	    rewrite_port(skb, p, p->protocol == IPPROTO_ICMP ? 4 : 0, p->source_port, port))
		return -1;
	p->source = address;
	p->source_port = port;
	return 0;
}

/* Give the packet another target. 0, or not 0 if the kernel refused. */
static __always_inline int rewrite_target(struct __sk_buff *skb, struct packet *p, __be32 address, __be16 port)
{
	if (rewrite_address(skb, p, offsetof(struct iphdr, daddr), p->target, address) ||
	    rewrite_port(skb, p, p->protocol == IPPROTO_ICMP ? 4 : 2, p->target_port, port))
		return -1;
	p->target = address;
	p->target_port = port;
	return 0;
}

/* Lower the MSS that a SYN announces to `mss_max`, so that no segment is larger than the VM's MTU (or the tunnel). */
static __always_inline void clamp_mss(struct __sk_buff *skb, const struct packet *p, __u16 mss_max)
{
	__u32 at = p->l4 + sizeof(struct tcphdr), end = p->l4 + p->tcp_header_bytes;
	__u8 option[4];

	if (p->protocol != IPPROTO_TCP || !(p->tcp_flags & TCP_FLAG_SYN))
		return;
	for (int i = 0; i < TCP_OPTIONS_MAX; i++) {
		if (at + sizeof(option) > end || bpf_skb_load_bytes(skb, at, option, sizeof(option)) || option[0] == 0)
			return;
		if (option[0] == 1) {
			at += 1;
			continue;
		}
		if (option[0] == 2) {
			__be16 old = 0, new = bpf_htons(mss_max);

			__builtin_memcpy(&old, option + 2, sizeof(old));
			if (option[1] != 4 || bpf_ntohs(old) <= mss_max)
				return;
			bpf_skb_store_bytes(skb, at + 2, &new, sizeof(new), 0);
			/* At an odd offset the two bytes sit in the other halves of the sum's words. */
			if ((at - p->l4) & 1) {
				old = __builtin_bswap16(old);
				new = __builtin_bswap16(new);
			}
			bpf_l4_csum_replace(skb, checksum_offset(p), old, new, sizeof(new));
			return;
		}
		if (option[1] < 2)
			return;
		at += option[1];
	}
}

/* Send the packet through the tunnel: outer target `remote`, DF set, outer UDP checksum 0, source port by flow. */
static __always_inline int to_tunnel(struct __sk_buff *skb, const struct node_config *node, __u32 vni, __be32 remote)
{
	struct bpf_tunnel_key key = {};

	key.tunnel_id = vni;
	key.remote_ipv4 = bpf_ntohl(remote);
	key.local_ipv4 = bpf_ntohl(node->address);
	key.tunnel_ttl = 64;
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX | BPF_F_DONT_FRAGMENT))
		return drop(COUNT_DROP_ERROR);
	return bpf_redirect(node->tunnel_ifindex, 0);
}

/* Put an empty Ethernet header in front of a packet that came out of the tunnel. 0, or not 0 if the kernel refused. */
static __always_inline int add_ethernet(struct __sk_buff *skb)
{
	return bpf_skb_change_head(skb, ETH_HLEN, 0);
}

/* The largest IP packet that goes over the wire for this skb: a super-packet is cut before it does. */
static __always_inline __u32 wire_bytes(struct __sk_buff *skb, const struct packet *p)
{
	__u32 headers = p->l4 - p->l3 + (p->protocol == IPPROTO_TCP ? p->tcp_header_bytes : 8);

	return skb->gso_size ? skb->gso_size + headers : p->bytes;
}

#endif
