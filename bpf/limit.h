/* SPDX-License-Identifier: GPL-2.0-only */
/* Token buckets: limits for floods. A bucket holds one second's worth at most.
 *
 * A bucket is one number, the moment up to which its tokens are spent (the generic cell rate algorithm,
 * ITU-T I.371): a token is worth 1 / rate of a second, and one can be taken if that much lies between
 * that moment and now. So two CPUs that share a bucket need one addition that neither can lose, and a
 * CPU whose clock was read before another's finds nothing to take, where a difference without a sign
 * would have found a full bucket. */
#pragma once

/* Limits of source prefixes are two rows of cells that all share (a count-min sketch with
 * conservative update: Estan and Varghese, SIGCOMM 2002; spec/limit.py). A hash gives a prefix a cell
 * of either row, and the one with more left counts: nothing is allocated, evicted or forgotten, and who
 * does not know the key of the hash cannot aim for the cells of another. */

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

/* Numbers of the cells of a prefix with this hash, in the first row and in the second. */
static __always_inline u32 cell_of(u64 hash)
{
	return hash & (LIMIT_CELLS - 1);
}

static __always_inline u32 other_cell_of(u64 hash)
{
	return LIMIT_CELLS + (hash >> 32 & (LIMIT_CELLS - 1));
}

/* The moment up to which a cell's tokens are spent; what has been left for a second is lost. */
static __always_inline u64 spent_of(u64 *cell, u64 full)
{
	u64 spent = *(volatile u64 *)cell;

	if ((s64)(spent - full) < 0) {
		spent = full;
		*(volatile u64 *)cell = spent;
	}
	return spent;
}

/* Takes one token from the cell that has more left, and from the other as much as leaves it with no
 * more than that one. CPUs may take too many as with `take_shared`. */
static __always_inline bool take_of_two(u64 *one, u64 *other, u64 rate, u64 now)
{
	u64 full = (now << FRACTION) - SECOND, here = spent_of(one, full), there = spent_of(other, full);
	u64 after = ((s64)(here - there) < 0 ? here : there) + SECOND / rate;

	if ((s64)(after - (now << FRACTION)) > 0)
		return false;
	if ((s64)(after - here) > 0)
		__sync_fetch_and_add(one, after - here);
	if ((s64)(after - there) > 0)
		__sync_fetch_and_add(other, after - there);
	return true;
}
