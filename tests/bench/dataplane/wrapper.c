/* SPDX-License-Identifier: GPL-2.0-only */
/* What a test run with repetitions needs around a program: BPF_PROG_TEST_RUN keeps the frame as the
 * program left it, so this makes it anew, and then calls the program.
 *
 * WITH_HEAD   takes off the outer header of the repetition before, by one adjust_head in any case:
 *             also around a program that puts none on, so that both runs have the same work here
 * WITH_TAIL   bytes of padding that the program cut off, put on again by one adjust_tail
 * WITH_TYPE   writes the destination's MAC address and the EtherType, where the outer header was
 * WITH_FLOWS  writes source, destination and ports of another flow of many (IPv4 only)
 *
 * Addresses and ports are written as the words that a program may read them by: a read that crosses
 * two writes waits until both have left the store buffer, which no frame from a driver would. */
#include <uapi/linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>

#define SOURCE_NETWORK 0x64400000U /* 100.64.0.0/10 */
#define SOURCE_BITS 22
#define PORT_BITS 15
#define LEAST_PORT 1024
#define LONGEST 1500

/* Drawn in programs.py too. */
struct knobs {
	u64 mac; /* first eight bytes of the frame: the destination's, and two of the source's */
	u64 state; /* of the generator: a count, or what the last random number was made from */
	u64 first; /* flow */
	u64 flows;
	u32 length; /* of the frame */
	u32 vip; /* destination of the first flow, host order */
	u16 type; /* EtherType, host order */
	u16 port; /* of the destination, host order */
	u8 is_random;
	u8 is_spread; /* each flow to another destination */
	u8 is_empty; /* the program leaves the frame alone */
	u8 zero;
};

BPF_TABLE("prog", u32, u32, next, 1);
BPF_TABLE("array", u32, struct knobs, settings, 1);

static __always_inline u64 next_flow(struct knobs *knobs)
{
	u64 state = knobs->state;

	if (knobs->is_random) {
		state = state * 6364136223846793005ULL + 1442695040888963407ULL; /* Knuth's MMIX */
		knobs->state = state;
		return knobs->first + ((state >> 32) * knobs->flows >> 32);
	}
	knobs->state = state + 1 < knobs->flows ? state + 1 : 0;
	return knobs->first + state;
}

static __always_inline int write_flow(struct knobs *knobs, void *data, void *end)
{
	u64 flow = next_flow(knobs);
	u32 source = SOURCE_NETWORK | (flow & ((1U << SOURCE_BITS) - 1));
	u32 destination = knobs->vip + (knobs->is_spread ? (u32)flow : 0);
	u32 port = LEAST_PORT + (((flow >> SOURCE_BITS) + flow * 40503) & ((1U << PORT_BITS) - 1));
	void *addresses = data + sizeof(struct ethhdr) + 12;

	if (addresses + 12 > end)
		return 0;
	*(u64 *)addresses = (u64)bpf_htonl(destination) << 32 | bpf_htonl(source);
	*(u32 *)(addresses + 8) = (u32)bpf_htons(knobs->port) << 16 | bpf_htons(port);
	return 1;
}

static __always_inline int restore(struct xdp_md *ctx, struct knobs *knobs)
{
#if WITH_HEAD
	u64 length = (u64)ctx->data_end - (u64)ctx->data;
	int surplus;

	asm volatile("" : "+r"(length)); /* or clang computes with the pointers, which is refused */
	surplus = (int)length - (int)knobs->length;
#if WITH_TAIL
	if (!surplus || knobs->is_empty) {
		/* Nobody cuts, so the frame grows by each turn; now and then all of it is undone. */
		if (surplus > LONGEST && bpf_xdp_adjust_tail(ctx, -surplus))
			return 0;
		surplus = 0;
	} else {
		surplus += WITH_TAIL;
	}
#endif
	if (bpf_xdp_adjust_head(ctx, surplus))
		return 0;
#if WITH_TAIL
	if (bpf_xdp_adjust_tail(ctx, WITH_TAIL))
		return 0;
#endif
#endif
	return 1;
}

int wrapper(struct xdp_md *ctx)
{
#if WITH_TYPE
	u32 zero = 0;
	struct knobs *knobs = settings.lookup(&zero);
	struct ethhdr *eth;
	void *end;

	if (!knobs || !restore(ctx, knobs))
		return XDP_ABORTED;
	eth = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if ((void *)(eth + 1) > end)
		return XDP_ABORTED;
	*(u64 *)eth->h_dest = knobs->mac;
	eth->h_proto = bpf_htons(knobs->type);
#if WITH_FLOWS
	if (!write_flow(knobs, eth, end))
		return XDP_ABORTED;
#endif
#endif
	next.call(ctx, 0);
	return XDP_ABORTED;
}
