/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the edge sends of its own, made out of the packet that caused it: a TCP reset for a VM whose flow is gone (RFC 9293, 3.5.2),
 * "fragmentation needed" for a packet that the tunnel cannot carry (RFC 1191); and the way out to the public side.
 */
#ifndef ARCHITECT_REPLY_H
#define ARCHITECT_REPLY_H

#include "packet.h"

#define AF_INET 2
#define ICMP_UNREACHABLE 3
#define ICMP_FRAGMENTATION_NEEDED 4
#define QUOTED_BYTES 28 /* IP header and 8 bytes */

/*
 * Send a packet that came out of the tunnel to where the routing table says; the kernel asks for a next hop that it does not know.
 * It is told the next hop: without, bpf_redirect_neigh looks the route up itself and, on kernels of before October 2025, leaks the
 * tunnel's metadata of every packet (see cilium/cilium#42000).
 */
static __always_inline int to_public(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_fib_lookup route = {};
	struct bpf_redir_neigh next = {};
	struct ethhdr ethernet = {};
	int result;

	route.family = AF_INET;
	route.ifindex = skb->ifindex;
	route.ipv4_src = p->source;
	route.ipv4_dst = p->target;
	route.l4_protocol = p->protocol;
	result = bpf_fib_lookup(skb, &route, sizeof(route), 0);
	if (result == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return drop(COUNT_DROP_TOO_BIG);
	if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
		return drop(COUNT_DROP_NO_ROUTE);
	if (add_ethernet(skb))
		return drop(COUNT_DROP_ERROR);
	if (result == BPF_FIB_LKUP_RET_NO_NEIGH) {
		next.nh_family = AF_INET;
		next.ipv4_nh = route.ipv4_dst;
		return bpf_redirect_neigh(route.ifindex, &next, sizeof(next), 0);
	}
	__builtin_memcpy(ethernet.h_dest, route.dmac, ETH_ALEN);
	__builtin_memcpy(ethernet.h_source, route.smac, ETH_ALEN);
	ethernet.h_proto = bpf_htons(ETH_P_IP);
	if (bpf_skb_store_bytes(skb, 0, &ethernet, sizeof(ethernet), 0))
		return drop(COUNT_DROP_ERROR);
	return bpf_redirect(route.ifindex, 0);
}

static __always_inline __sum16 folded(__s64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__sum16)~sum;
}

/* Turn the VM's TCP packet into the reset that answers it, and send that back to the host it came from. */
static __always_inline int reset_vm(struct __sk_buff *skb, struct packet *p, const struct node_config *node, __u32 vni,
				    __be32 host)
{
	__u32 payload = p->bytes - (p->l4 - p->l3) - p->tcp_header_bytes + !!(p->tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_FIN));
	struct {
		struct iphdr ip;
		struct tcphdr tcp;
	} reply;
	struct {
		__be32 source, target;
		__u8 zero, protocol;
		__be16 bytes;
	} pseudo = { p->target, p->source, 0, IPPROTO_TCP, bpf_htons(sizeof(struct tcphdr)) };
	struct tcphdr old;

	if (bpf_skb_load_bytes(skb, p->l4, &old, sizeof(old)))
		return drop(COUNT_DROP_ERROR);
	__builtin_memset(&reply, 0, sizeof(reply));
	reply.ip.version = 4;
	reply.ip.ihl = 5;
	reply.ip.tot_len = bpf_htons(sizeof(reply));
	reply.ip.frag_off = bpf_htons(0x4000);
	reply.ip.ttl = 64;
	reply.ip.protocol = IPPROTO_TCP;
	reply.ip.saddr = p->target;
	reply.ip.daddr = p->source;
	reply.ip.check = folded(bpf_csum_diff(NULL, 0, (__be32 *)&reply.ip, sizeof(reply.ip), 0));
	reply.tcp.source = old.dest;
	reply.tcp.dest = old.source;
	reply.tcp.doff = sizeof(reply.tcp) / 4;
	reply.tcp.rst = 1;
	if (p->tcp_flags & TCP_FLAG_ACK) {
		reply.tcp.seq = old.ack_seq;
	} else {
		reply.tcp.ack = 1;
		reply.tcp.ack_seq = bpf_htonl(bpf_ntohl(old.seq) + payload);
	}
	reply.tcp.check = folded(bpf_csum_diff(NULL, 0, (__be32 *)&reply.tcp, sizeof(reply.tcp),
					       bpf_csum_diff(NULL, 0, (__be32 *)&pseudo, sizeof(pseudo), 0)));
	if (bpf_skb_change_tail(skb, p->l3 + sizeof(reply), 0) || bpf_skb_store_bytes(skb, p->l3, &reply, sizeof(reply), 0))
		return drop(COUNT_DROP_ERROR);
	count(COUNT_RESET_SENT);
	return to_tunnel(skb, node, vni, host);
}

/* Turn the client's packet into the ICMP error that tells it the largest size, and send that back. Only packets with DF ask for it. */
static __always_inline int packet_too_big(struct __sk_buff *skb, struct packet *p, __u32 bytes_max)
{
	struct {
		struct iphdr ip;
		__u8 type, code;
		__sum16 check;
		__be16 unused, mtu;
		__u8 quoted[QUOTED_BYTES];
	} reply;

	if (p->l3 != ETH_HLEN || p->l4 != ETH_HLEN + sizeof(struct iphdr))
		return drop(COUNT_DROP_TOO_BIG);
	__builtin_memset(&reply, 0, sizeof(reply));
	if (bpf_skb_load_bytes(skb, p->l3, reply.quoted, QUOTED_BYTES))
		return drop(COUNT_DROP_ERROR);
	reply.ip.version = 4;
	reply.ip.ihl = 5;
	reply.ip.tot_len = bpf_htons(sizeof(reply));
	reply.ip.ttl = 64;
	reply.ip.protocol = IPPROTO_ICMP;
	reply.ip.saddr = p->target;
	reply.ip.daddr = p->source;
	reply.ip.check = folded(bpf_csum_diff(NULL, 0, (__be32 *)&reply.ip, sizeof(reply.ip), 0));
	reply.type = ICMP_UNREACHABLE;
	reply.code = ICMP_FRAGMENTATION_NEEDED;
	reply.mtu = bpf_htons(bytes_max);
	reply.check = folded(bpf_csum_diff(NULL, 0, (__be32 *)&reply.type, sizeof(reply) - sizeof(reply.ip), 0));
	if (bpf_skb_change_tail(skb, p->l3 + sizeof(reply), 0) || bpf_skb_store_bytes(skb, p->l3, &reply, sizeof(reply), 0))
		return drop(COUNT_DROP_ERROR);
	count(COUNT_PACKET_TOO_BIG_SENT);
	return bpf_redirect_neigh(skb->ifindex, NULL, 0, 0);
}

#endif
