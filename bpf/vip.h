/* SPDX-License-Identifier: GPL-2.0-only */
/* The VIP of a packet: by address and port, then any port, then networks, longest prefix first.
 *
 * ICMP and later fragments have no ports: they are looked up as protocol ICMP and port 0, where
 * every VIP address has an entry. */
#pragma once

#define MAPPED_BITS 128
#define PREFIX_FIXED_BITS 32 /* of a prefix_key, before the address */

static __always_inline struct vip *find_exact(const struct vip_key *wanted)
{
	struct vip_key key = *wanted;
	struct vip *vip = vips.lookup(&key);

#if WITH_ANY_PORT
	if (!vip && key.port) {
		key.port = 0;
		vip = vips.lookup(&key);
	}
#endif
	return vip;
}

static __always_inline struct vip *find_network(const struct vip_key *wanted)
{
	struct prefix_key key = {
		.length = PREFIX_FIXED_BITS + MAPPED_BITS,
		.protocol = wanted->protocol,
		.port = wanted->port,
		.address = { wanted->address[0], wanted->address[1], wanted->address[2],
			     wanted->address[3] },
	};
	struct vip *vip = prefixes.lookup(&key);

	if (!vip && key.port) {
		key.port = 0;
		vip = prefixes.lookup(&key);
	}
	return vip;
}

static __always_inline struct vip *find_vip(const struct packet *packet)
{
	struct vip_key key = packet->destination;
	struct vip *vip;

	if (packet->kind == KIND_LATER_FRAGMENT || packet->kind == KIND_ICMP) {
		key.protocol = packet->is_v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP;
		key.port = 0;
	}
	vip = find_exact(&key);
#if WITH_PREFIXES
	if (!vip)
		vip = find_network(&key);
#endif
	return vip;
}
