/* SPDX-License-Identifier: GPL-2.0-only */
/* Time: jiffies, which cost one load, and ticks of four to eight seconds made of them. What was set
 * in seconds is over one tick late, or two at most, and never early.
 *
 * The agent's side is agent/tidegate/model/ticks.py. */
#pragma once

#define TICK_MASK 0xffff

static __always_inline u32 tick_now(void)
{
	return (bpf_jiffies64() >> TICK_SHIFT) & TICK_MASK;
}

/* The age in ticks above which more than so many seconds have passed. */
static __always_inline u32 ticks_of(u32 seconds)
{
	return (u32)((u64)seconds * HZ >> TICK_SHIFT) + 1;
}
