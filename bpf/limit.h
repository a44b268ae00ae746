/* SPDX-License-Identifier: GPL-2.0-only */
/* Token buckets: limits for floods. A bucket holds one second's worth at most.
 *
 * A bucket is one number, the moment up to which its tokens are spent (the generic cell rate algorithm,
 * ITU-T I.371): a token is worth 1 / rate of a second, and one can be taken if that much lies between
 * that moment and now. So two CPUs that share a bucket need one addition that neither can lose, and a
 * CPU whose clock was read before another's finds nothing to take, where a difference without a sign
 * would have found a full bucket. */
#pragma once

#define FRACTION 24 /* bits of a jiffy */
#define SECOND ((u64)HZ << FRACTION)

/* Whether there is a token, of which `rate` come in a second; `now` in jiffies. What has been left for
 * longer than a second is lost. */
static __always_inline bool has_token(struct bucket *bucket, u64 token, u64 now)
{
	u64 spent = *(volatile u64 *)&bucket->spent;

	now <<= FRACTION;
	if ((s64)(now - spent) > (s64)SECOND) {
		spent = now - SECOND;
		*(volatile u64 *)&bucket->spent = spent;
	}
	return (s64)(now - spent) >= (s64)token;
}

/* Takes one token if there is one, from a bucket that this CPU has to itself. */
static __always_inline bool take(struct bucket *bucket, u64 rate, u64 now)
{
	u64 token = rate ? SECOND / rate : SECOND + 1;

	if (!has_token(bucket, token, now))
		return false;
	bucket->spent += token;
	return true;
}

/* The same from one that CPUs share. Each may find the last token, so as many can be taken too many as
 * there are CPUs; and as many again, once, where several find a bucket that lay for a second. */
static __always_inline bool take_shared(struct bucket *bucket, u64 rate, u64 now)
{
	u64 token = rate ? SECOND / rate : SECOND + 1;

	if (!has_token(bucket, token, now))
		return false;
	__sync_fetch_and_add(&bucket->spent, token);
	return true;
}
