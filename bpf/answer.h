/* SPDX-License-Identifier: GPL-2.0-only */
/* What the balancer sends itself, from a VIP's address: replies to pings, and "packet too big".
 *
 * An answer goes back to the MAC address that the packet came from. All answers of a CPU share one
 * limit, so that nobody can use the balancer as a reflector. */
#pragma once

#define ANSWER_RATE 10000 /* per second and CPU */
#define ANSWER_TTL 64
#define ICMP_QUOTE 64 /* bytes of the IP packet that a v4 error quotes: its header and more */
#define ICMP6_QUOTE 1232 /* fills 1280 bytes, as RFC 4443 section 2.4 (c) wants */
#define ICMP_HEADER 8

static __always_inline bool may_answer(void)
{
	u32 zero = 0;
	struct bucket *bucket = answer_limits.lookup(&zero);

	return bucket && take(bucket, ANSWER_RATE, bpf_jiffies64());
}

static __always_inline void turn_around(struct ethhdr *eth)
{
	u8 mac[ETH_ALEN];

	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
}

/* Turns an echo request into its reply, in place. Returns false if there is not enough of it. */
static __always_inline bool answer_echo(void *data, void *end, const struct packet *packet)
{
	struct icmphdr *icmp = l4_of(data, packet);
	void *l3 = data + packet->l3;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end || (void *)(icmp + 1) > end)
		return false;
	if (packet->is_v6) {
		struct ipv6hdr *ip = l3;
		struct in6_addr address;

		if ((void *)(ip + 1) > end)
			return false;
		__builtin_memcpy(&address, &ip->saddr, 16);
		__builtin_memcpy(&ip->saddr, &ip->daddr, 16);
		__builtin_memcpy(&ip->daddr, &address, 16);
		ip->hop_limit = ANSWER_TTL;
		icmp->type = ICMPV6_ECHO_REPLY;
		icmp->checksum = updated(icmp->checksum, bpf_htons(ICMPV6_ECHO_REQUEST << 8),
					 bpf_htons(ICMPV6_ECHO_REPLY << 8));
	} else {
		struct iphdr *ip = l3;
		u32 address;

		if ((void *)(ip + 1) > end)
			return false;
		address = ip->saddr;
		ip->saddr = ip->daddr;
		ip->daddr = address;
		ip->check = updated(ip->check, bpf_htons(ip->ttl << 8), bpf_htons(ANSWER_TTL << 8));
		ip->ttl = ANSWER_TTL;
		icmp->type = ICMP_ECHOREPLY;
		icmp->checksum = updated(icmp->checksum, bpf_htons(ICMP_ECHO << 8), 0);
	}
	turn_around(eth);
	return true;
}

/* Cuts the packet to what is quoted and makes room in front of it. Returns the new IP header, or NULL
 * if the frame does not allow it. */
static __always_inline void *make_room(struct xdp_md *ctx, const struct packet *packet, u32 quote,
				       u32 headers, u16 ethertype)
{
	int frame = frame_length(ctx);
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct ethhdr addresses;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end || packet->length < quote)
		return NULL;
	addresses = *eth;
	if (bpf_xdp_adjust_tail(ctx, (int)(packet->l3 + quote) - frame))
		return NULL;
	if (bpf_xdp_adjust_head(ctx, -(int)headers))
		return NULL;
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return NULL;
	*eth = addresses;
	turn_around(eth);
	return write_ethernet((void *)(long)ctx->data, (void *)(long)ctx->data_end, packet, ethertype);
}

/* ICMP destination unreachable, fragmentation needed (RFC 792, RFC 1191). */
static __always_inline bool answer_too_big4(struct xdp_md *ctx, const struct packet *packet, u32 mtu)
{
	u32 headers = sizeof(struct iphdr) + ICMP_HEADER;
	struct iphdr *ip = make_room(ctx, packet, ICMP_QUOTE, headers, bpf_htons(ETH_P_IP));
	void *end = (void *)(long)ctx->data_end;
	u16 *icmp;

	if (!ip || (void *)ip + headers + ICMP_QUOTE > end)
		return false;
	ip->version = 4;
	ip->ihl = 5;
	ip->tos = 0xc0; /* internetwork control, as RFC 1812 section 4.3.2.5 suggests */
	ip->tot_len = bpf_htons(headers + ICMP_QUOTE);
	ip->id = 0;
	ip->frag_off = IP_DF;
	ip->ttl = ANSWER_TTL;
	ip->protocol = IPPROTO_ICMP;
	ip->check = 0;
	ip->saddr = packet->destination.address[3];
	ip->daddr = packet->source[3];
	ip->check = ~fold(bpf_csum_diff(0, 0, ip, sizeof(*ip), 0));
	icmp = (void *)(ip + 1);
	icmp[0] = bpf_htons(ICMP_DEST_UNREACH << 8 | ICMP_FRAG_NEEDED);
	icmp[1] = 0;
	icmp[2] = 0;
	icmp[3] = bpf_htons(mtu);
	icmp[1] = ~fold(bpf_csum_diff(0, 0, icmp, ICMP_HEADER + ICMP_QUOTE, 0));
	return true;
}

/* ICMPv6 packet too big (RFC 4443 section 3.2). */
static __always_inline bool answer_too_big6(struct xdp_md *ctx, const struct packet *packet, u32 mtu)
{
	u32 headers = sizeof(struct ipv6hdr) + ICMP_HEADER, body = ICMP_HEADER + ICMP6_QUOTE;
	struct ipv6hdr *ip = make_room(ctx, packet, ICMP6_QUOTE, headers, bpf_htons(ETH_P_IPV6));
	void *end = (void *)(long)ctx->data_end;
	u32 *icmp;
	u64 sum;

	if (!ip || (void *)ip + headers + ICMP6_QUOTE > end)
		return false;
	*(u32 *)ip = bpf_htonl(6 << 28 | 0xc0 << 20);
	ip->payload_len = bpf_htons(body);
	ip->nexthdr = IPPROTO_ICMPV6;
	ip->hop_limit = ANSWER_TTL;
	__builtin_memcpy(&ip->saddr, packet->destination.address, 16);
	__builtin_memcpy(&ip->daddr, packet->source, 16);
	icmp = (void *)(ip + 1);
	icmp[0] = bpf_htonl(ICMPV6_PKT_TOOBIG << 24);
	icmp[1] = bpf_htonl(mtu);
	/* The pseudo-header, whose two numbers fit 16 bits, then the message in pieces that the helper
	 * takes. */
	sum = bpf_csum_diff(0, 0, &ip->saddr, 32, bpf_htons(body) + bpf_htons(IPPROTO_ICMPV6));
	sum = bpf_csum_diff(0, 0, icmp, 512, sum);
	sum = bpf_csum_diff(0, 0, (void *)icmp + 512, 512, sum);
	sum = bpf_csum_diff(0, 0, (void *)icmp + 1024, ICMP_HEADER + ICMP6_QUOTE - 1024, sum);
	((u16 *)icmp)[1] = ~fold(sum);
	return true;
}
