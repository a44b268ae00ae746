/* SPDX-License-Identifier: GPL-2.0-only */
/* Fragments: the first has the ports and chooses; the later ones follow it (RFC 791, RFC 8200
 * section 4.5). A later fragment that overtakes the first one is dropped, and counted. */
#pragma once

static __always_inline void fragment_key_of(struct fragment_key *key, const struct packet *packet)
{
	__builtin_memcpy(key->source, packet->source, sizeof(key->source));
	__builtin_memcpy(key->destination, packet->destination.address, sizeof(key->destination));
	key->id = packet->fragment_id;
	/* In IPv6 the next header of a later fragment need not be that of the first. */
	key->protocol = packet->is_v6 ? 0 : packet->destination.protocol;
}

static __always_inline void remember_fragment(const struct packet *packet,
					      const struct choice *choice, const struct vip *vip)
{
	struct fragment_key key = {};
	struct flow flow = {};

	fragment_key_of(&key, packet);
	remember(&flow, choice, vip, bpf_ktime_get_ns());
	fragments.update(&key, &flow);
}

/* Datagrams are put together within a minute or never (RFC 8200); ids come round again after. */
#define REASSEMBLY_SECONDS 60

static __always_inline int follow_fragment(struct choice *choice, const struct packet *packet)
{
	struct fragment_key key = {};
	struct flow *first;

	fragment_key_of(&key, packet);
	first = fragments.lookup(&key);
	if (!first || bpf_ktime_get_ns() - first->seen > REASSEMBLY_SECONDS * SECOND)
		return DROP_FRAGMENT;
	choice->generation = first->generation;
	if (!choose(choice, first->backend, first->backend_incarnation, BY_FRAGMENT))
		return DROP_FRAGMENT;
	return DROP_NONE;
}
