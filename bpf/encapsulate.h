/* SPDX-License-Identifier: GPL-2.0-only */
/* IP in IP (RFC 2003, RFC 2473): an outer header in front of the packet, which is not touched.
 *
 * The outer source is a network plus bits of the flow hash, so that routers and NIC queues behind
 * us spread tunnelled flows; a full-length prefix makes it one fixed address. */
#pragma once

#define OUTER_TTL 64
#define ENCAP_V4 4 /* IPPROTO_IPIP */
#define ENCAP_V6 41 /* IPPROTO_IPV6 */

static __always_inline u16 checksum_of(u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline int encapsulate(struct xdp_md *ctx, const struct packet *packet,
				       const struct choice *choice)
{
	struct endpoint *to = &choice->backend->endpoints[choice->backend->selected & 1];
	bool outer_v6 = to->family == 6;
	u32 interface = ctx->ingress_ifindex;
	int outer_bytes = outer_v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	struct link *link = links.lookup(&interface);
	void *data, *end;
	struct ethhdr *eth;

	if (!link || !(outer_v6 ? link->has_gateway6 : link->has_gateway4))
		return DROP_NO_GATEWAY;
	if (packet->length + outer_bytes > link->mtu)
		return DROP_TOO_BIG;
	if (bpf_xdp_adjust_head(ctx, -outer_bytes))
		return DROP_NO_HEADROOM;

	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	eth = data;
	if ((void *)(eth + 1) > end)
		return DROP_NO_HEADROOM;
	__builtin_memcpy(eth->h_source, link->mac, ETH_ALEN);

	if (outer_v6) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end)
			return DROP_NO_HEADROOM;
		__builtin_memcpy(eth->h_dest, link->gateway6, ETH_ALEN);
		eth->h_proto = bpf_htons(ETH_P_IPV6);
		ip->version = 6;
		ip->priority = packet->tos >> 4;
		ip->flow_lbl[0] = packet->tos << 4;
		ip->flow_lbl[1] = 0;
		ip->flow_lbl[2] = 0;
		ip->payload_len = bpf_htons(packet->length);
		ip->nexthdr = packet->is_v6 ? ENCAP_V6 : ENCAP_V4;
		ip->hop_limit = OUTER_TTL;
		u32 source[4] = {
			SOURCE6_0,
			SOURCE6_1,
			SOURCE6_2 | bpf_htonl((u32)(choice->hash >> 32) & SOURCE6_MASK2),
			SOURCE6_3 | bpf_htonl((u32)choice->hash & SOURCE6_MASK3),
		};
		__builtin_memcpy(&ip->saddr, source, 16);
		__builtin_memcpy(&ip->daddr, to->address, 16);
	} else {
		struct iphdr *ip = (void *)(eth + 1);
		u32 sum = 0;

		if ((void *)(ip + 1) > end)
			return DROP_NO_HEADROOM;
		__builtin_memcpy(eth->h_dest, link->gateway4, ETH_ALEN);
		eth->h_proto = bpf_htons(ETH_P_IP);
		ip->version = 4;
		ip->ihl = 5;
		ip->tos = packet->tos;
		ip->tot_len = bpf_htons(packet->length + sizeof(*ip));
		ip->id = 0; /* an atomic datagram needs none (RFC 6864 section 4.1) */
		ip->frag_off = IP_DF;
		ip->ttl = OUTER_TTL;
		ip->protocol = packet->is_v6 ? ENCAP_V6 : ENCAP_V4;
		ip->check = 0;
		ip->saddr = SOURCE4 | bpf_htonl((u32)choice->hash & SOURCE4_MASK);
		ip->daddr = to->address[3];
		for (int i = 0; i < 10; i++)
			sum += ((u16 *)ip)[i];
		ip->check = checksum_of(sum);
	}
	return DROP_NONE;
}
