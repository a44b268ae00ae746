/* SPDX-License-Identifier: GPL-2.0-only */
/* What depends on who the client is: denied, routed to another pool, or sending too many SYNs. */
#pragma once

#if WITH_ROUTES
static __always_inline struct route *route_of(u32 vip, const u32 *source)
{
	struct route_key key = {
		.length = 32 + MAPPED_BITS,
		.vip = vip,
		.source = { source[0], source[1], source[2], source[3] },
	};

	return routes.lookup(&key);
}
#endif

/* Whether a VIP denies an address. What is not of a flow's own packets is asked after by this. */
static __always_inline bool is_denied(u32 vip, const u32 *source)
{
#if WITH_ROUTES
	struct route *route = route_of(vip, source);

	return route && route->flags & ROUTE_DENY;
#else
	return false;
#endif
}

/* The pool for this client, or 0 if the client is denied; pool ids begin at 1. */
static __always_inline u32 pool_for(const struct vip *vip, const struct packet *packet)
{
#if WITH_ROUTES
	if (vip->flags & VIP_ROUTES) {
		struct route *route = route_of(vip->id, packet->source);

		if (route)
			return route->flags & ROUTE_DENY ? 0 : route->pool;
	}
#endif
	return vip->pool;
}

/* False if the client's prefix has sent its share of SYNs. */
static __always_inline bool syn_is_within_limit(u32 *prefix, const struct vip *vip,
						const struct packet *packet)
{
	u64 hash = prefix_hash(prefix, packet, vip->syn_prefix4, vip->syn_prefix6, vip->salt);
	u32 cell = cell_of(hash), other_cell = other_cell_of(hash);
	u64 *one = syn_limits.lookup(&cell), *other = syn_limits.lookup(&other_cell);

	return one && other && take_of_two(one, other, vip->syn_rate, bpf_jiffies64());
}
