/* SPDX-License-Identifier: GPL-2.0-only */
/* For benchmarks: BPF_PROG_TEST_RUN with repetitions keeps the frame that a program left, so this
 * takes off the outer header of the repetition before and then runs the program. */
#include <uapi/linux/bpf.h>
#include <linux/if_ether.h>

BPF_TABLE("prog", u32, u32, next, 1);

int restore(struct xdp_md *ctx)
{
	int surplus = (int)(ctx->data_end - ctx->data) - FRAME_BYTES;
	struct ethhdr *eth;

	if (surplus && bpf_xdp_adjust_head(ctx, surplus))
		return XDP_ABORTED;
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	eth->h_proto = bpf_htons(ETHERTYPE);
	next.call(ctx, 0);
	return XDP_PASS;
}
