/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The edge: between the public addresses and the tunnel. It owns the addresses and all state about flows; where a VM is, is one
 * `vms` entry.
 *
 *   from_public (ingress of the NIC): to a flow that a VM opened, or to a published port: into the tunnel to the VM's host.
 *       Everything else is the kernel's (ARP, ping of the public address, refusals, our own connections).
 *   from_tunnel (ingress of the tunnel device): only from the VM's host; a published port's answers and the VM's own flows get
 *       their public source and go out, or, if they are for a public address of ours, back in.
 *
 * Published ports need no state per flow. A flow that a VM opens claims a public port by creating its `flows_in` entry
 * (BPF_NOEXIST), so that two VMs never share one towards the same peer; user space ages both directions together.
 */
#include "fragment.h"
#include "packet.h"
#include "reply.h"

#define VMS_MAX 65536
#define SERVICES_MAX 65536
#define FLOWS_MAX 262144
#define SESSIONS_MAX 65536
#define FLOWS_PER_VM_MAX 32768
#define PORT_TRIES_MAX 16
#define PORT_LOWEST 1024

char LICENSE[] SEC("license") = "GPL";

#define HASH(name, entries, key_type, value_type) \
	struct { \
		__uint(type, BPF_MAP_TYPE_HASH); \
		__uint(max_entries, entries); \
		__uint(map_flags, BPF_F_NO_PREALLOC); \
		__type(key, key_type); \
		__type(value, value_type); \
	} name SEC(".maps")

#define BPF_F_NO_PREALLOC 1U

HASH(vms, VMS_MAX, __u32, struct edge_vm);
HASH(vips, 256, __be32, __u32);
HASH(services, SERVICES_MAX, struct service_key, struct service);
HASH(reverses, SERVICES_MAX, struct reverse_key, __be32); /* public port, in the low 16 bits */
HASH(flows_out, FLOWS_MAX, struct flow_out_key, struct flow_out);
HASH(flows_in, FLOWS_MAX, struct flow_in_key, struct flow_in);
HASH(flow_counts, VMS_MAX, __u32, __u32);

/* The connections to reset when a VM's flows are; the oldest make room, and lose no more than that. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, SESSIONS_MAX);
	__type(key, struct session_key);
	__type(value, __u64);
} sessions SEC(".maps");

enum verdict { NOT_OURS = -1 };

/* ---- towards the VM ---- */

/*
 * Remember a connection to a published port by its SYN. Whether the packet may pass: always, until the VM's flows were reset; then
 * only if the SYN was seen since.
 */
static __always_inline int is_known_session(const struct edge_vm *vm, __u32 vni, __be32 remote, __be16 port, __be16 remote_port,
					    const struct packet *p)
{
	struct session_key key = { .vni = vni, .remote = remote, .port = port, .remote_port = remote_port };
	__u64 now, *seen;

	if (p->protocol != IPPROTO_TCP || p->fragment == FRAGMENT_LATER)
		return 1;
	if ((p->tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_ACK)) == TCP_FLAG_SYN) {
		now = bpf_ktime_get_ns();
		bpf_map_update_elem(&sessions, &key, &now, BPF_ANY);
		return 1;
	}
	if (!vm->is_tracked)
		return 1;
	seen = bpf_map_lookup_elem(&sessions, &key);
	if (seen)
		*seen = bpf_ktime_get_ns();
	return seen != NULL;
}

static __always_inline int to_vm(struct __sk_buff *skb, struct packet *p, const struct node_config *node, __u32 vni,
				 const struct edge_vm *vm, __be16 port)
{
	if (!vm->host)
		return drop(COUNT_DROP_NO_HOST);
	if (wire_bytes(skb, p) > node->tunnel_payload_bytes)
		return packet_too_big(skb, p, node->tunnel_payload_bytes);
	clamp_mss(skb, p, node->tunnel_payload_bytes - 40);
	if (rewrite_target(skb, p, vm->inner, port))
		return drop(COUNT_DROP_ERROR);
	count(COUNT_TO_VM);
	return to_tunnel(skb, node, vni, vm->host);
}

/* An answer to a flow that a VM opened. */
static __always_inline int answer_to_vm(struct __sk_buff *skb, struct packet *p, const struct node_config *node)
{
	struct flow_in_key key = { .vip = p->target, .remote = p->source, .port = p->target_port, .remote_port = p->source_port,
				   .protocol = p->protocol };
	const struct edge_vm *vm;
	struct flow_in *flow;
	__u32 vni;

	if (p->protocol == IPPROTO_ICMP && p->icmp_type != ICMP_TYPE_ECHO_REPLY)
		return NOT_OURS;
	flow = bpf_map_lookup_elem(&flows_in, &key);
	if (!flow)
		return NOT_OURS;
	vni = flow->vni;
	vm = bpf_map_lookup_elem(&vms, &vni);
	if (!vm)
		return NOT_OURS;
	flow->seen_ns = bpf_ktime_get_ns();
	flow->bits |= FLOW_ANSWERED | (p->tcp_flags & TCP_FLAG_FIN ? FLOW_FIN : 0) | (p->tcp_flags & TCP_FLAG_RST ? FLOW_RESET : 0);
	return to_vm(skb, p, node, vni, vm, flow->port);
}

/* A packet to a published port. */
static __always_inline int service_to_vm(struct __sk_buff *skb, struct packet *p, const struct node_config *node)
{
	struct service_key key = { .vip = p->target, .port = p->target_port, .protocol = p->protocol };
	const struct service *service;
	const struct edge_vm *vm;
	__u32 vni;

	if (p->protocol == IPPROTO_ICMP)
		return NOT_OURS;
	service = bpf_map_lookup_elem(&services, &key);
	if (!service || !service->vni)
		return NOT_OURS;
	vni = service->vni;
	vm = bpf_map_lookup_elem(&vms, &vni);
	if (!vm)
		return NOT_OURS;
	/* The kernel, which has no such connection, answers with a reset. */
	if (!is_known_session(vm, vni, p->source, service->port, p->source_port, p))
		return NOT_OURS;
	return to_vm(skb, p, node, vni, vm, service->port);
}

static __always_inline int public_to_vm(struct __sk_buff *skb, struct packet *p, const struct node_config *node)
{
	int verdict = answer_to_vm(skb, p, node);

	return verdict == NOT_OURS ? service_to_vm(skb, p, node) : verdict;
}

SEC("tc")
int from_public(struct __sk_buff *skb)
{
	const struct node_config *node = config();
	struct packet p;
	int wrong, verdict;

	if (!node)
		return TC_ACT_OK;
	wrong = parse(skb, ETH_HLEN, &p);
	if (wrong || !bpf_map_lookup_elem(&vips, &p.target))
		return TC_ACT_OK;
	if (!know_fragment(&p))
		return drop(COUNT_DROP_FRAGMENT);
	verdict = public_to_vm(skb, &p, node);
	return verdict == NOT_OURS ? TC_ACT_OK : verdict;
}

/* ---- from the VM ---- */

/* Claim a public port for a new flow: the VM's own if it is free, or one by chance. 0, or the counter that says why not. */
static __always_inline int claim(const struct flow_out_key *out, struct flow_out *flow)
{
	struct flow_in_key key = { .vip = flow->vip, .remote = out->remote, .remote_port = out->remote_port,
				   .protocol = out->protocol };
	struct service_key service = { .vip = flow->vip, .protocol = out->protocol };
	struct flow_in in = { .seen_ns = flow->seen_ns, .vni = out->vni, .port = out->port };
	int refused;

	for (int i = 0; i < PORT_TRIES_MAX; i++) {
		__u32 random = PORT_LOWEST + bpf_get_prandom_u32() % (65536 - PORT_LOWEST);

		key.port = i == 0 ? out->port : bpf_htons(random);
		service.port = key.port;
		if (bpf_map_lookup_elem(&services, &service))
			continue;
		refused = bpf_map_update_elem(&flows_in, &key, &in, BPF_NOEXIST);
		if (refused == -17) /* EEXIST */
			continue;
		if (refused)
			return COUNT_DROP_FLOWS_FULL;
		flow->port = key.port;
		/* Not created: another CPU carries the same flow's first packet and has won; ours goes with the next. */
		if (bpf_map_update_elem(&flows_out, out, flow, BPF_NOEXIST)) {
			bpf_map_delete_elem(&flows_in, &key);
			return COUNT_DROP_FLOWS_FULL;
		}
		return 0;
	}
	return COUNT_DROP_NO_PUBLIC_PORT;
}

/* One flow more for this VM. 0, or the counter that says that it has too many. */
static __always_inline int count_flow(__u32 vni)
{
	__u32 one = 1, *flows = bpf_map_lookup_elem(&flow_counts, &vni);

	if (!flows) {
		bpf_map_update_elem(&flow_counts, &vni, &one, BPF_ANY);
		return 0;
	}
	if (*flows >= FLOWS_PER_VM_MAX)
		return COUNT_DROP_FLOWS_FULL;
	__sync_fetch_and_add(flows, 1);
	return 0;
}

static __always_inline int open_flow(const struct packet *p, const struct flow_out_key *key, const struct edge_vm *vm,
				     __be16 *port)
{
	struct flow_out flow = { .seen_ns = bpf_ktime_get_ns(), .vip = vm->vip };
	int wrong;

	if (p->protocol == IPPROTO_TCP && p->fragment != FRAGMENT_LATER && (p->tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_ACK)) != TCP_FLAG_SYN)
		return COUNT_DROP_NO_FLOW;
	wrong = count_flow(key->vni);
	if (!wrong)
		wrong = claim(key, &flow);
	*port = flow.port;
	return wrong;
}

/* The public port of a flow that the VM opened, or opens with this packet. 0, or the counter that says why there is none. */
static __always_inline int flow_port(const struct packet *p, __u32 vni, const struct edge_vm *vm, __be16 *port)
{
	struct flow_out_key key = { .vni = vni, .remote = p->target, .port = p->source_port, .remote_port = p->target_port,
				    .protocol = p->protocol };
	struct flow_out *flow = bpf_map_lookup_elem(&flows_out, &key);

	if (p->protocol == IPPROTO_ICMP && p->icmp_type != ICMP_TYPE_ECHO)
		return COUNT_DROP_PROTOCOL;
	if (!flow)
		return open_flow(p, &key, vm, port);
	flow->seen_ns = bpf_ktime_get_ns();
	if (p->tcp_flags & TCP_FLAG_SYN)
		flow->bits = 0; /* the same ports again: a new connection */
	flow->bits |= (p->tcp_flags & TCP_FLAG_FIN ? FLOW_FIN : 0) | (p->tcp_flags & TCP_FLAG_RST ? FLOW_RESET : 0);
	*port = flow->port;
	return 0;
}

/* The public source port of the VM's packet. 0, or the counter that says why there is none. */
static __always_inline int public_port(const struct packet *p, __u32 vni, const struct edge_vm *vm, __be16 *port)
{
	struct reverse_key key = { .vni = vni, .port = p->source_port, .protocol = p->protocol };
	const __be32 *reverse = bpf_map_lookup_elem(&reverses, &key);

	if (!reverse)
		return flow_port(p, vni, vm, port);
	if (!is_known_session(vm, vni, p->target, p->source_port, p->target_port, p))
		return COUNT_DROP_NO_FLOW;
	*port = (__be16)*reverse;
	return 0;
}

/* Loopback, link-local (metadata servers), multicast and "this network" are nothing for a VM to reach through the edge. */
static __always_inline int is_unroutable(__be32 address)
{
	__u32 value = bpf_ntohl(address);

	return value >> 24 == 127 || value >> 24 == 0 || value >> 16 == 0xa9fe || value >> 28 >= 0xe;
}

SEC("tc")
int from_tunnel(struct __sk_buff *skb)
{
	const struct node_config *node = config();
	struct bpf_tunnel_key key = {};
	const struct edge_vm *vm;
	struct packet p;
	__be16 port = 0;
	__be32 remote;
	__u32 vni;
	int wrong;

	if (!node || bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))
		return drop(COUNT_DROP_ERROR);
	vni = key.tunnel_id;
	remote = bpf_htonl(key.remote_ipv4);
	vm = bpf_map_lookup_elem(&vms, &vni);
	if (!vm)
		return drop(COUNT_DROP_UNKNOWN_VM);
	if (!remote || (remote != vm->host && remote != vm->previous))
		return drop(COUNT_DROP_WRONG_SOURCE);
	wrong = parse(skb, 0, &p);
	if (wrong)
		return drop(wrong);
	if (p.source != vm->inner || is_unroutable(p.target))
		return drop(COUNT_DROP_WRONG_ADDRESS);
	if (!know_fragment(&p))
		return drop(COUNT_DROP_FRAGMENT);
	wrong = public_port(&p, vni, vm, &port);
	if (wrong == COUNT_DROP_NO_FLOW && p.protocol == IPPROTO_TCP && !(p.tcp_flags & TCP_FLAG_RST))
		return reset_vm(skb, &p, node, vni, remote);
	if (wrong)
		return drop(wrong);
	if (rewrite_source(skb, &p, vm->vip, port))
		return drop(COUNT_DROP_ERROR);
	count(COUNT_FROM_VM);
	if (bpf_map_lookup_elem(&vips, &p.target)) {
		int verdict = public_to_vm(skb, &p, node);

		count(COUNT_HAIRPIN);
		return verdict == NOT_OURS ? drop(COUNT_DROP_NO_SERVICE) : verdict;
	}
	return to_public(skb, &p);
}
