/* SPDX-License-Identifier: GPL-2.0-only */
/* For backends on kernels without tunnel devices: takes the outer header off IPIP, IP6IP6, IP4IP6
 * and 6-in-4 packets and passes what was inside to the stack, which has the VIP on its loopback.
 * Everything else passes untouched. A packet whose inner header cannot be read is dropped. */
#include <uapi/linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

int decap(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	unsigned char macs[12];
	__be16 inner;
	int outer_bytes;
	u8 protocol;

	if ((void *)(eth + 1) > end)
		return XDP_PASS;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		/* Our own outer headers have no options and are never fragments. */
		if ((void *)(ip + 1) > end || ip->ihl != 5 || ip->frag_off & bpf_htons(0x3fff))
			return XDP_PASS;
		protocol = ip->protocol;
		outer_bytes = sizeof(*ip);
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end)
			return XDP_PASS;
		protocol = ip->nexthdr;
		outer_bytes = sizeof(*ip);
	} else {
		return XDP_PASS;
	}

	if (protocol == IPPROTO_IPIP)
		inner = bpf_htons(ETH_P_IP);
	else if (protocol == IPPROTO_IPV6)
		inner = bpf_htons(ETH_P_IPV6);
	else
		return XDP_PASS;

	__builtin_memcpy(macs, eth, sizeof(macs));
	if (bpf_xdp_adjust_head(ctx, outer_bytes))
		return XDP_DROP;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	eth = data;
	if ((void *)(eth + 1) > end)
		return XDP_DROP;
	__builtin_memcpy(eth, macs, sizeof(macs));
	eth->h_proto = inner;
	return XDP_PASS;
}
