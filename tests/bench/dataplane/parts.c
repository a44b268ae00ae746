/* SPDX-License-Identifier: GPL-2.0-only */
/* Programs of one step each, for the price list, and those that do next to nothing: what a wrapper
 * is measured around. PART says which one this is. */
#include <uapi/linux/bpf.h>
#include <linux/if_ether.h>

#define EMPTY 0
#define EMPTY_TX 1
#define PUSH 2
#define KTIME 3
#define COARSE 4
#define JIFFIES 5
#define ADJUST_HEAD 6
#define CHAIN 7
#define ARRAY 8
#define PERCPU 9
#define HASH12 10
#define HASH40 11
#define LRU12 12
#define LRU40 13
#define CSUM_DIFF 14
#define RANDOM 15
#define LINE 16

#define OUTER_WORDS 5 /* of an IPv4 header */

struct key12 {
	u32 words[3];
};

struct key40 {
	u32 words[10];
};

struct line {
	u64 words[8];
};

/* By number, as not every bcc knows them: include/uapi/linux/bpf.h, enum bpf_func_id. */
#define JIFFIES64 ((u64(*)(void))118)
#define COARSE_CLOCK ((u64(*)(void))160)

#if PART < CHAIN
int parts(struct xdp_md *ctx)
{
#if PART == PUSH
	struct ethhdr *eth;
	u32 *ip;

	if (bpf_xdp_adjust_head(ctx, -4 * OUTER_WORDS))
		return XDP_ABORTED;
	eth = (void *)(long)ctx->data;
	ip = (void *)(eth + 1);
	if ((void *)(ip + OUTER_WORDS) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memset(eth, 2, 2 * ETH_ALEN);
	eth->h_proto = bpf_htons(ETH_P_IP);
	for (int i = 0; i < OUTER_WORDS; i++)
		ip[i] = 0x45000000 + i;
#elif PART == KTIME
	return bpf_ktime_get_ns() ? XDP_PASS : XDP_ABORTED;
#elif PART == COARSE
	return COARSE_CLOCK() ? XDP_PASS : XDP_ABORTED;
#elif PART == JIFFIES
	return JIFFIES64() ? XDP_PASS : XDP_ABORTED;
#elif PART == ADJUST_HEAD
	return bpf_xdp_adjust_head(ctx, 0) ? XDP_ABORTED : XDP_PASS;
#endif
	return PART == EMPTY ? XDP_PASS : XDP_TX;
}

#else
/* What a turn hands to the next one. It is zero, except where it is a random number; but no step can
 * begin before the one of the turn before has ended, so what is measured is how long one takes, and
 * not how many the CPU overlaps. The way from one to the next is longer than all else that a turn
 * has to do, or a step would be hidden behind that. */
#define DELAY 16

BPF_TABLE("array", u32, u64, chain, 1);

#if PART == ARRAY
BPF_TABLE("array", u32, u64, array, 1);
#elif PART == PERCPU
BPF_TABLE("percpu_array", u32, u64, percpu, 1);
#elif PART == HASH12
BPF_TABLE("hash", struct key12, struct line, table, 1);
#elif PART == HASH40
BPF_TABLE("hash", struct key40, struct line, table, 1);
#elif PART == LRU12
BPF_TABLE("lru_hash", struct key12, struct line, table, 1);
#elif PART == LRU40
BPF_TABLE("lru_hash", struct key40, struct line, table, 1);
#elif PART == LINE
BPF_TABLE("array", u32, struct line, lines, 1);
#endif

static __always_inline u64 step(u64 last)
{
#if PART == ARRAY
	u32 at = last;
	u64 *value = array.lookup(&at);

	return value ? *value : 1;
#elif PART == PERCPU
	u32 at = last;
	u64 *value = percpu.lookup(&at);

	return value ? ++*value : 1;
#elif PART == HASH12 || PART == LRU12 || PART == HASH40 || PART == LRU40
#if PART == HASH12 || PART == LRU12
	struct key12 key = { .words = { last } };
#else
	struct key40 key = { .words = { last } };
#endif
	struct line *line = table.lookup(&key);

	return line ? line->words[0] : 1;
#elif PART == CSUM_DIFF
	u32 header[OUTER_WORDS] = { last };

	return bpf_csum_diff(NULL, 0, header, sizeof(header), 0);
#elif PART == RANDOM || PART == LINE
	u64 next = last * 6364136223846793005ULL + 1442695040888963407ULL; /* Knuth's MMIX */
#if PART == LINE
	u32 at = (next >> 32) * LINES >> 32;
	struct line *line = lines.lookup(&at);

	next += line ? line->words[0] : 1;
#endif
	return next;
#else
	return last;
#endif
}

int parts(struct xdp_md *ctx)
{
	u32 first = 0;
	u64 *last = chain.lookup(&first), next;

	if (!last)
		return XDP_ABORTED;
	next = step(*last);
#if PART != RANDOM && PART != LINE
	asm volatile("%0 &= 0" : "+r"(next)); /* it is zero, and still has to be waited for */
#endif
	for (int i = 0; i < DELAY; i++)
		asm volatile("%0 *= 5" : "+r"(next));
	*last = next;
	return XDP_PASS;
}
#endif
