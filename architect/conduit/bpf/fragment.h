/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Fragments of datagrams that pass the edge: the first one has the ports and leaves them here for the later ones, which have none.
 * A later fragment that overtakes its first one is dropped and counted; the datagram is then lost, as any may be.
 */
#ifndef ARCHITECT_FRAGMENT_H
#define ARCHITECT_FRAGMENT_H

#include "packet.h"

#define FRAGMENTS_MAX 16384

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FRAGMENTS_MAX);
	__type(key, struct fragment_key);
	__type(value, struct fragment_ports);
} fragments SEC(".maps");

/* Complete what `parse` has read of a fragment. 0 if its ports are not known. */
static __always_inline int know_fragment(struct packet *p)
{
	struct fragment_key key = { .source = p->source, .target = p->target, .id = p->id, .protocol = p->protocol };
	struct fragment_ports first = { .source = p->source_port, .target = p->target_port };
	const struct fragment_ports *known;

	if (p->fragment == FRAGMENT_NONE)
		return 1;
	if (p->fragment == FRAGMENT_FIRST) {
		bpf_map_update_elem(&fragments, &key, &first, BPF_ANY);
		return 1;
	}
	known = bpf_map_lookup_elem(&fragments, &key);
	if (!known)
		return 0;
	p->source_port = known->source;
	p->target_port = known->target;
	return 1;
}

#endif
