/* SPDX-License-Identifier: GPL-2.0-only */
/* Time: jiffies, which cost one load, and ticks of four to eight seconds made of them. What was set
 * in seconds is over one tick late, or two at most, and never early.
 *
 * The agent's side is agent/tidegate/model/ticks.py. */
#pragma once

#define TICK_MASK 0xffff

#define TICKS_AHEAD 2 /* that a CPU may be behind another: more than any is */

static __always_inline u32 tick_now(void)
{
	return (bpf_jiffies64() >> TICK_SHIFT) & TICK_MASK;
}

/* The ticks that have passed from one moment to another. What another CPU wrote in a tick that had not
 * begun when this one read its clock is new, and not three days old. */
static __always_inline u32 passed(u32 then, u32 now)
{
	u32 age = (now - then) & TICK_MASK;

	return age > TICK_MASK - TICKS_AHEAD ? 0 : age;
}

/* What is counted is 1 or 0 computed without a branch, as of two ways the verifier would follow each
 * sum; OPAQUE keeps clang from making it one. */
#define OPAQUE(value) asm volatile("" : "+r"(value))

#define TICK_IN_STATE 16 /* where an entry's state has its tick */
#define SILENCE ((u64)TICK_MASK << TICK_IN_STATE)

/* The ticks since the one of a state, in the same place, and two more: what another CPU wrote that is
 * ahead is younger than what speaks now. */
static __always_inline u64 silence_of(u64 state, u64 tick)
{
	return (((tick + TICKS_AHEAD) << TICK_IN_STATE | ~SILENCE) - state) & SILENCE;
}

/* Marks of SYNs have six bits of time, in quarters of a tick: one to two seconds each. */
#define MOMENT_BITS 6
#define MOMENT_MASK ((1 << MOMENT_BITS) - 1)

static __always_inline u32 moment_now(void)
{
	return (bpf_jiffies64() >> (TICK_SHIFT - 2)) & MOMENT_MASK;
}

/* The moments that have passed, likewise; after a minute or two the count begins again. */
static __always_inline u32 moments_passed(u32 then, u32 now)
{
	u32 age = (now - then) & MOMENT_MASK;

	return age > MOMENT_MASK - TICKS_AHEAD ? 0 : age;
}

/* 1 if so many moments have passed, one at least, else 0. */
static __always_inline u32 have_passed(u32 then, u32 now, u32 least)
{
	u32 age = (now - then) & MOMENT_MASK;
	u32 is_old = least - 1 - age, is_past = age - (MOMENT_MASK + 1 - TICKS_AHEAD);

	OPAQUE(is_old);
	OPAQUE(is_past);
	return (is_old & is_past) >> 31;
}

/* The age in ticks above which more than so many seconds have passed. */
static __always_inline u32 ticks_of(u32 seconds)
{
	return (u32)((u64)seconds * HZ >> TICK_SHIFT) + 1;
}
