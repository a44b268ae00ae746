/* SPDX-License-Identifier: GPL-2.0-only */
/* GUE variant 1 (draft-ietf-intarea-gue section 4): a UDP header between outer and inner packet. Its
 * source port carries the flow, and its checksum is that of the whole datagram. */
#pragma once

#define GUE_PORTS 0xc000 /* source ports: the dynamic ones (RFC 6335) */
#define GUE_PORT_BITS 0x3fff

static __always_inline int fill_gue(struct xdp_md *ctx, const struct packet *packet,
				    const struct choice *choice, const struct fit *fit, u16 port)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	void *ip = data + packet->l3;
	u32 length = packet->length + sizeof(struct udphdr);
	u64 sum = (u64)bpf_htons(length) + bpf_htons(IPPROTO_UDP);
	struct udphdr *udp;
	u16 check;

	if (fit->is_v6) {
		udp = ip + sizeof(struct ipv6hdr);
		if ((void *)(udp + 1) > end)
			return DROP_NO_HEADROOM;
		sum = (u32)bpf_csum_diff(0, 0, &((struct ipv6hdr *)ip)->saddr, 32, sum);
	} else {
		udp = ip + sizeof(struct iphdr);
		if ((void *)(udp + 1) > end)
			return DROP_NO_HEADROOM;
		sum = (u32)bpf_csum_diff(0, 0, &((struct iphdr *)ip)->saddr, 8, sum);
	}
	udp->source = bpf_htons(GUE_PORTS | (choice->hash >> 20 & GUE_PORT_BITS));
	udp->dest = bpf_htons(port);
	udp->len = bpf_htons(length);
	udp->check = 0;
	sum += sum_of_frame(ctx, packet->l3 + fit->outer, length);
	check = ~fold(sum);
	/* 0 would mean that there is no checksum (RFC 768). */
	check = check ? check : 0xffff;
	bpf_xdp_store_bytes(ctx, packet->l3 + fit->outer + offsetof(struct udphdr, check), &check,
			    sizeof(check));
	return DROP_NONE;
}
