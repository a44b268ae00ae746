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

static __always_inline u32 leading_bits(u32 word, int bits)
{
	if (bits <= 0)
		return 0;
	return bits >= 32 ? word : word & bpf_htonl(0xffffffffU << (32 - bits));
}

/* False if the client's prefix has sent its share of SYNs. */
static __always_inline bool syn_is_within_limit(const struct vip *vip, const struct packet *packet)
{
	int bits = packet->is_v6 ? vip->syn_prefix6 : 96 + vip->syn_prefix4;
	struct limit_key key = { .vip = vip->id };
	u64 now = bpf_jiffies64();
	struct bucket *bucket;

	for (int i = 0; i < 4; i++)
		key.prefix[i] = leading_bits(packet->source[i], bits - 32 * i);
	bucket = syn_limits.lookup(&key);
	if (!bucket) {
		struct bucket fresh = { .spent = (now << FRACTION) - SECOND + SECOND / vip->syn_rate };

		syn_limits.update(&key, &fresh);
		return true;
	}
	return take_shared(bucket, vip->syn_rate, now);
}
