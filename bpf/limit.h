/* SPDX-License-Identifier: GPL-2.0-only */
/* Token buckets: limits for floods. A bucket holds one second's worth at most. */
#pragma once

#define TOKEN (1ULL << 20)

/* Takes one token if there is one. `rate` is in tokens per second, `now` in jiffies. */
static __always_inline bool take(struct bucket *bucket, u64 rate, u64 now)
{
	u64 passed = now - bucket->at;
	u64 full = rate * TOKEN;
	u64 refill = full;

	if (passed < HZ)
		refill = full * passed / HZ;
	if (refill) {
		bucket->tokens = bucket->tokens + refill > full ? full : bucket->tokens + refill;
		bucket->at = now;
	}
	if (bucket->tokens < TOKEN)
		return false;
	bucket->tokens -= TOKEN;
	return true;
}
