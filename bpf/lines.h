/* SPDX-License-Identifier: GPL-2.0-only */
/* Tables of 64-byte lines, which packets write without a lock or a call: connections, SYN marks,
 * fragments.
 *
 * A key of 64 keyed bits names a pair of neighbouring lines and which of the two is its home; an
 * entry may be in either, and the home is looked at first. With ten places in a pair and 8/3
 * entries in it on average, one flow in 20,000 finds its pair full. What tells the entries of a pair
 * apart is a fingerprint, the lower 40 bits of the key: a new flow is taken for one that is there
 * with a probability of at most 10 / 2^40, and then shares its backend.
 *
 * An owner (fingerprint, backend, its incarnation) is one word, so that whatever two CPUs write into
 * one line, no packet follows the backend of another flow. The state beside it may for a moment be
 * that of another entry in its place: it says when the flow last spoke and whose it is, and never where it
 * goes. */
#pragma once

#define FINGERPRINT_SHIFT 24
#define INCARNATION_SHIFT 16
#define INCARNATION_MASK 0xff
#define HOME_BIT 40

#define FLOW_ENDING 1 /* the client has sent FIN or RST */
#define FLOW_SPOKE 2 /* it has sent more than the packet that made the entry, or its SYN was seen */
#define FLOW_CONTESTED 4 /* a SYN found it and left a mark: what follows that takes the place */
#define FLOW_COPIED 8 /* from a table of another size, and nothing of it was seen since */
#define FLOW_FLAGS 0xf
#define VIP_SHIFT 4
#define VIP_MASK 0xfff

#define HANDSHAKE_MOMENTS 3 /* a mark that is younger is not overwritten */
#define PLACES (2 * LINE_ENTRIES)
#define POSITION 0xf /* where a claim has the place that it is for */
#define RANK (1ULL << 32)
#define LAST_PLACES 3 /* of a pair, that a VIP gets only if it has few there */
#define SPARE_PLACES 6 /* to be left for one more mark of a prefix above its limit */

struct pair {
	struct line *home, *other;
	u32 first; /* number of the home line */
};

/* An entry that was found. It is kept where the verifier takes each value for any (scratch), with the
 * line's number instead of a pointer, so that one way leads on from ten places. */
struct found {
	u64 owner;
	u32 state;
	u32 line;
	u32 at;
};

static __always_inline u32 home_of(u64 key, u32 pairs)
{
	return (u32)((key >> 32) * pairs >> 32) * 2 + (key >> HOME_BIT & 1);
}

/* What an entry keeps of its key, where its owner has it; never 0, which is what an empty place has. */
static __always_inline u64 fingerprint_of(u64 key)
{
	u64 fingerprint = key << FINGERPRINT_SHIFT;

	return fingerprint ? fingerprint : 1ULL << FINGERPRINT_SHIFT;
}

static __always_inline u64 owner_of(u64 key, u32 backend, u32 incarnation)
{
	return fingerprint_of(key) | (incarnation & INCARNATION_MASK) << INCARNATION_SHIFT | backend;
}

static __always_inline u32 backend_of(u64 owner)
{
	return owner & 0xffff;
}

static __always_inline u32 incarnation_of(u64 owner)
{
	return owner >> INCARNATION_SHIFT & INCARNATION_MASK;
}

static __always_inline u32 state_of(u32 tick, u32 vip, u32 flags)
{
	return tick << TICK_IN_STATE | vip << VIP_SHIFT | flags;
}

static __always_inline u32 vip_of(u32 state)
{
	return state >> VIP_SHIFT & VIP_MASK;
}

static __always_inline u32 age_of(u32 state, u32 tick)
{
	return passed(state >> TICK_IN_STATE, tick);
}

static __always_inline bool find_in_line(struct found *found, const struct line *line, u32 number,
					 u64 fingerprint)
{
#pragma unroll
	for (u32 i = 0; i < LINE_ENTRIES; i++) {
		u64 owner = line->owners[i];

		if ((owner ^ fingerprint) >> FINGERPRINT_SHIFT)
			continue;
		found->line = number;
		found->at = i;
		found->owner = owner;
		found->state = line->states[i];
		return true;
	}
	return false;
}

static __always_inline bool find_in(struct found *found, const struct pair *pair, u64 key)
{
	u64 fingerprint = fingerprint_of(key);

	return find_in_line(found, pair->home, pair->first, fingerprint) ||
	       find_in_line(found, pair->other, pair->first ^ 1, fingerprint);
}

/* 1 or 0. Words of 64 bits: of shorter ones clang cuts each result off, by two instructions more. */
static __always_inline u64 is_taken(u64 owner)
{
	u64 negative = -owner;

	OPAQUE(negative);
	return (owner | negative) >> 63;
}

/* All bits if a number below 2^63 is 0, else none. */
static __always_inline u64 mask_if_zero(u64 number)
{
	s64 below = number - 1;

	OPAQUE(below);
	return below >> 63;
}

static __always_inline u64 larger(u64 a, u64 b)
{
	s64 difference = a - b, less = difference >> 63;

	OPAQUE(less);
	return a - (difference & less);
}

/* The place for a key that has no entry: an empty one; else that of a flow that is ending, or spoke
 * once, in this order; of several the one that has been quiet longest, of equals the first. Returns
 * PLACES if nobody has to make room: silence alone is no reason, or whoever sends many packets of
 * no flow could have those forgotten that wait. What is silent for a VIP's time has ended.
 *
 * The last places are shared out: of so few that are not its own, and could be had, a VIP gets one
 * while it has fewer in the pair than those, and else one of its own makes room. */
static __always_inline u32 room_in(const struct pair *pair, u32 tick, u32 vip)
{
	/* A claim and its place are one number, and nobody's is 0. */
	u64 most = 0, most_own = 0, own = 0, free = PLACES;

#pragma unroll
	for (u32 i = 0; i < PLACES; i++) {
		const struct line *line = i < LINE_ENTRIES ? pair->home : pair->other;
		u32 at = i < LINE_ENTRIES ? i : i - LINE_ENTRIES;
		u64 taken = is_taken(line->owners[at]);
		u64 state = line->states[at] & -taken; /* of an empty place 0, which is no VIP's */
		u64 ours = mask_if_zero((state ^ vip << VIP_SHIFT) & (VIP_MASK << VIP_SHIFT));
		u64 kept = mask_if_zero((state & (FLOW_ENDING | FLOW_SPOKE)) ^ FLOW_SPOKE);
		u64 rank = RANK * (1 + (state & FLOW_ENDING) + 2 * (taken ^ 1));
		u64 here = (rank + silence_of(state, tick) + (PLACES - i)) & ~kept;
		u64 here_own = here & ours;

		own -= ours;
		free += ours | kept;
		most = larger(here ^ here_own, most);
		most_own = larger(here_own, most_own);
	}
	if (free > LAST_PLACES || own < free)
		most_own = larger(most, most_own);
	return PLACES - (most_own & POSITION);
}

static __always_inline void put(struct line *line, u32 at, u64 owner, u32 state)
{
	asm volatile("" : "+r"(at));
	if (at >= LINE_ENTRIES)
		return;
	line->states[at] = state;
	*(volatile u64 *)&line->owners[at] = owner;
}

static __always_inline void put_at(const struct pair *pair, u32 place, u64 owner, u32 state)
{
	if (place < LINE_ENTRIES)
		put(pair->home, place, owner, state);
	else
		put(pair->other, place - LINE_ENTRIES, owner, state);
}

/* The place for a new mark: an empty one, else the oldest whose handshake should be over; PLACES if
 * there are not so many at least. */
static __always_inline u32 place_for_mark(const struct pair *pair, u32 moment, u32 least)
{
	u32 most = 0, taken = 0;

	for (u32 i = 0; i < PLACES; i++) {
		struct line *line = i < LINE_ENTRIES ? pair->home : pair->other;
		u32 at = i < LINE_ENTRIES ? i : i - LINE_ENTRIES;
		u32 then = line->moments >> (MOMENT_BITS * at);
		u32 age = moments_passed(then, moment);
		u32 is_full = is_taken(line->owners[at]) & ~have_passed(then, moment, HANDSHAKE_MOMENTS);
		u32 here = (line->owners[at] ? age : MOMENT_MASK + 1) << 4 | (PLACES - i);

		taken += is_full;
		if (here >> 4 >= HANDSHAKE_MOMENTS && here > most)
			most = here;
	}
	return taken > PLACES - least ? PLACES : PLACES - (most & 0xf);
}

static __always_inline void put_mark(struct line *line, u32 at, u64 owner, u32 sequence, u32 moment)
{
	asm volatile("" : "+r"(at));
	if (at >= LINE_ENTRIES)
		return;
	line->moments = (line->moments & ~(MOMENT_MASK << (MOMENT_BITS * at))) |
			moment << (MOMENT_BITS * at);
	put(line, at, owner, sequence);
}

static __always_inline bool flow_pair(struct pair *pair, u64 key)
{
	u32 home = home_of(key, FLOW_PAIRS), other = home ^ 1;

	pair->first = home;
	pair->home = flows.lookup(&home);
	pair->other = flows.lookup(&other);
	return pair->home && pair->other;
}

static __always_inline bool mark_pair(struct pair *pair, u64 key)
{
	u32 home = home_of(key, SYN_PAIRS), other = home ^ 1;

	pair->first = home;
	pair->home = syns.lookup(&home);
	pair->other = syns.lookup(&other);
	return pair->home && pair->other;
}

static __always_inline bool fragment_pair(struct pair *pair, u64 key)
{
	u32 home = home_of(key, FRAGMENT_PAIRS), other = home ^ 1;

	pair->first = home;
	pair->home = fragments.lookup(&home);
	pair->other = fragments.lookup(&other);
	return pair->home && pair->other;
}
