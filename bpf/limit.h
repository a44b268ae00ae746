/* SPDX-License-Identifier: GPL-2.0-only */
/* Token buckets: limits for floods. A bucket holds one second's worth at most. */
#pragma once

#define TOKEN (1ULL << 20)
#define SECOND 1000000000ULL

/* Takes one token if there is one. `rate` is in tokens per second. */
static __always_inline bool take(struct bucket *bucket, u64 rate, u64 now)
{
	u64 passed = now - bucket->at;
	u64 full = rate * TOKEN;
	u64 refill = full;

	/* 2^20 / 10^9, in an order that neither loses the small nor overflows on the large. */
	if (passed < SECOND)
		refill = rate * passed / 1000 * 1049 / 1000;
	if (refill) {
		bucket->tokens = bucket->tokens + refill > full ? full : bucket->tokens + refill;
		bucket->at = now;
	}
	if (bucket->tokens < TOKEN)
		return false;
	bucket->tokens -= TOKEN;
	return true;
}
