/* SPDX-License-Identifier: GPL-2.0-only */
/* An outer header in front of the packet, which is not touched: IP in IP (RFC 2003, RFC 2473,
 * RFC 4213). For GUE room is left behind it, which gue.h fills.
 *
 * The outer source is a network plus bits of the flow hash, so that routers and NIC queues behind
 * us spread tunnelled flows; a full-length prefix makes it one fixed address. */
#pragma once

#define OUTER_TTL 64
#define BYTE1(byte) ((u32)bpf_htons((byte) << 8)) /* of a word, as it is in memory */
#define BYTE2(byte) ((u32)bpf_htons(byte))

/* Both are written by words: so many stores less. */
static __always_inline void write_outer6(struct ipv6hdr *ip, u8 tos, u64 hash,
					 const struct endpoint *to, u8 protocol, u32 length)
{
	u32 *words = (u32 *)ip;

	words[0] = bpf_htonl(6 << 28 | tos << 20);
	words[1] = bpf_htons(length) | (BYTE1(protocol) | BYTE2(OUTER_TTL)) << 16;
	words[2] = SOURCE6_0;
	words[3] = SOURCE6_1;
	words[4] = SOURCE6_2 | bpf_htonl((u32)(hash >> 32) & SOURCE6_MASK2);
	words[5] = SOURCE6_3 | bpf_htonl((u32)hash & SOURCE6_MASK3);
	words[6] = to->address[0];
	words[7] = to->address[1];
	words[8] = to->address[2];
	words[9] = to->address[3];
}

static __always_inline void write_outer4(struct iphdr *ip, u8 tos, u64 hash,
					 const struct endpoint *to, u8 protocol, u32 length)
{
	/* The identification is 0: an atomic datagram needs none (RFC 6864 section 4.1). */
	u32 first = (BYTE1(0x45) | BYTE2(tos)) | (u32)bpf_htons(length + sizeof(*ip)) << 16;
	u32 second = (u32)IP_DF << 16, third = BYTE1(OUTER_TTL) | BYTE2(protocol);
	u32 source = SOURCE4 | bpf_htonl((u32)hash & SOURCE4_MASK), *words = (u32 *)ip;
	u64 sum = (u64)first + second + third + source + to->address[3];

	words[0] = first;
	words[1] = second;
	words[2] = third | (u32)(u16)~fold(sum) << 16;
	words[3] = source;
	words[4] = to->address[3];
}

/* What the outer headers take, and what remains for the packet. */
struct fit {
	u32 outer;
	u32 gue;
	u32 limit; /* largest IP packet that fits inside */
	bool is_v6;
};

static __always_inline void measure(struct fit *fit, const struct backend *backend,
				    const struct link *link)
{
	const struct endpoint *to = &backend->endpoints[backend->selected & 1];
	u32 mtu = link->mtu;

	fit->is_v6 = to->family == 6;
	fit->outer = fit->is_v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
#if WITH_GUE
	fit->gue = backend->gue_port ? sizeof(struct udphdr) : 0;
#endif
	if (backend->mtu && backend->mtu < mtu)
		mtu = backend->mtu;
	fit->limit = mtu - fit->outer - fit->gue;
}

static __always_inline int encapsulate(struct xdp_md *ctx, const struct packet *packet,
				       const struct choice *choice, const struct backend *backend,
				       const struct link *link, const struct fit *fit)
{
	const struct endpoint *to = &backend->endpoints[backend->selected & 1];
	int padding = frame_length(ctx) - packet->l3 - packet->length;
	u32 length = packet->length + fit->gue, headers = fit->outer + fit->gue;
	u16 type = fit->is_v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	u8 protocol = packet->is_v6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
	struct ethhdr *eth;
	void *end, *ip;

#if WITH_GUE
	if (fit->gue)
		protocol = IPPROTO_UDP;
#endif
	if (padding > 0 && bpf_xdp_adjust_tail(ctx, -padding))
		return DROP_NO_HEADROOM;
	if (bpf_xdp_adjust_head(ctx, -(int)headers))
		return DROP_NO_HEADROOM;
	eth = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	ip = write_ethernet(eth, end, packet, type);
	if (!ip || (void *)(eth + 1) > end)
		return DROP_NO_HEADROOM;
	if (fit->is_v6) {
		if (ip + sizeof(struct ipv6hdr) + sizeof(struct udphdr) > end)
			return DROP_NO_HEADROOM;
		write_macs(eth, &link->to6);
		write_outer6(ip, packet->tos, choice->hash, to, protocol, length);
	} else {
		if (ip + sizeof(struct iphdr) + sizeof(struct udphdr) > end)
			return DROP_NO_HEADROOM;
		write_macs(eth, &link->to4);
		write_outer4(ip, packet->tos, choice->hash, to, protocol, length);
	}
	return DROP_NONE;
}
