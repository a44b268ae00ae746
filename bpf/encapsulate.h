/* SPDX-License-Identifier: GPL-2.0-only */
/* An outer header in front of the packet, which is not touched: IP in IP (RFC 2003, RFC 2473,
 * RFC 4213). For GUE room is left behind it, which gue.h fills.
 *
 * The outer source is a network plus bits of the flow hash, so that routers and NIC queues behind
 * us spread tunnelled flows; a full-length prefix makes it one fixed address. */
#pragma once

#define OUTER_TTL 64
static __always_inline void write_outer6(struct ipv6hdr *ip, const struct packet *packet,
					 const struct choice *choice, const struct endpoint *to,
					 u8 protocol, u32 length)
{
	u32 source[4] = {
		SOURCE6_0,
		SOURCE6_1,
		SOURCE6_2 | bpf_htonl((u32)(choice->hash >> 32) & SOURCE6_MASK2),
		SOURCE6_3 | bpf_htonl((u32)choice->hash & SOURCE6_MASK3),
	};

	*(u32 *)ip = bpf_htonl(6 << 28 | packet->tos << 20);
	ip->payload_len = bpf_htons(length);
	ip->nexthdr = protocol;
	ip->hop_limit = OUTER_TTL;
	__builtin_memcpy(&ip->saddr, source, 16);
	__builtin_memcpy(&ip->daddr, to->address, 16);
}

static __always_inline void write_outer4(struct iphdr *ip, const struct packet *packet,
					 const struct choice *choice, const struct endpoint *to,
					 u8 protocol, u32 length)
{
	u64 sum = 0;

	ip->version = 4;
	ip->ihl = 5;
	ip->tos = packet->tos;
	ip->tot_len = bpf_htons(length + sizeof(*ip));
	ip->id = 0; /* an atomic datagram needs none (RFC 6864 section 4.1) */
	ip->frag_off = IP_DF;
	ip->ttl = OUTER_TTL;
	ip->protocol = protocol;
	ip->check = 0;
	ip->saddr = SOURCE4 | bpf_htonl((u32)choice->hash & SOURCE4_MASK);
	ip->daddr = to->address[3];
	for (int i = 0; i < 10; i++)
		sum += ((u16 *)ip)[i];
	ip->check = ~fold(sum);
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
	__builtin_memcpy(eth->h_source, link->mac, ETH_ALEN);
	if (fit->is_v6) {
		if (ip + sizeof(struct ipv6hdr) + sizeof(struct udphdr) > end)
			return DROP_NO_HEADROOM;
		__builtin_memcpy(eth->h_dest, link->gateway6, ETH_ALEN);
		write_outer6(ip, packet, choice, to, protocol, length);
	} else {
		if (ip + sizeof(struct iphdr) + sizeof(struct udphdr) > end)
			return DROP_NO_HEADROOM;
		__builtin_memcpy(eth->h_dest, link->gateway4, ETH_ALEN);
		write_outer4(ip, packet, choice, to, protocol, length);
	}
	return DROP_NONE;
}
