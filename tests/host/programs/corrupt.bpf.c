/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* A link that changes a byte in the payload of every 16th TCP packet with data, and lets its checksum be right all the same: what
 * TLS is for. In from the link of a host; packets for the edge and the control plane (other networks than /24s of hosts) pass whole.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define OFFSET 24 /* into the payload: past the head of a TLS record */
#define ONE_IN 16
#define HOST_OCTET 10 /* hosts are .10 in their networks (clouds.local.layout) */

char LICENSE[] SEC("license") = "GPL";

SEC("tc")
int corrupt(struct __sk_buff *skb)
{
	struct iphdr ip;
	struct tcphdr tcp;
	__u32 at = ETH_HLEN, head;
	__u8 byte;

	if (skb->protocol != bpf_htons(ETH_P_IP) || bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) < 0)
		return TC_ACT_OK;
	if (ip.protocol != IPPROTO_TCP || ip.ihl != 5 || (bpf_ntohl(ip.daddr) & 0xff) != HOST_OCTET)
		return TC_ACT_OK;
	at += sizeof(ip);
	if (bpf_skb_load_bytes(skb, at, &tcp, sizeof(tcp)) < 0)
		return TC_ACT_OK;
	head = tcp.doff * 4;
	if (bpf_get_prandom_u32() % ONE_IN || bpf_skb_load_bytes(skb, at + head + OFFSET, &byte, 1) < 0)
		return TC_ACT_OK;
	byte ^= 0x20;
	bpf_skb_store_bytes(skb, at + head + OFFSET, &byte, 1, BPF_F_RECOMPUTE_CSUM);
	return TC_ACT_OK;
}
