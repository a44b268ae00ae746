/* SPDX-License-Identifier: GPL-2.0-only */
/* What the balancer sends itself, from a VIP's address: replies to pings, "packet too big", and, where
 * a VIP asks for it, rejections of what no VIP takes.
 *
 * An answer goes back to the MAC address that the packet came from. Each kind of answer has a limit of
 * its own on each CPU: nobody can use the balancer as a reflector, and a flood of pings keeps nobody from
 * learning that its packets are too big. */
#pragma once

#define ANSWER_RATE 10000 /* per second and CPU, of each kind */
#define ANSWER_TTL 64
#define ICMP_QUOTE 64 /* bytes of the IP packet that a v4 error quotes: its header, and 8 at least */
#define ICMP6_QUOTE 1232 /* fills 1280 bytes, as RFC 4443 section 2.4 (c) wants */
#define ICMP_HEADER 8

/* True if what we say of a packet has somebody to hear it: not an ICMP error, not a later fragment, and
 * not from an address that is no unicast host's (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e). */
static __always_inline bool may_be_answered(const struct packet *packet)
{
	const u32 *source = packet->source;
	u8 first = source[3];

	if (packet->is_error || packet->kind == KIND_LATER_FRAGMENT)
		return false;
	if (!packet->is_v6)
		return first && first != 127 && first < 224;
	if ((u8)source[0] == 0xff || (!source[0] && !source[1] && source[2] == MAPPED_PREFIX))
		return false;
	/* :: and ::1 */
	return source[0] || source[1] || source[2] || bpf_ntohl(source[3]) > 1;
}

enum answer { ANSWER_PING, ANSWER_TOO_BIG, ANSWER_REJECTION };

static __always_inline bool may_answer(u32 answer)
{
	struct bucket *bucket = answer_limits.lookup(&answer);

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
		/* Perhaps all is zero: then 0xffff verifies and 0 does not, and else both do. */
		if (!icmp->checksum && !icmp->rest)
			icmp->checksum = 0xffff;
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

#define CONTROL_TOS 0xc0 /* internetwork control, as RFC 1812 section 4.3.2.5 suggests */

/* The IP header of an answer, which comes from the address that was asked. */
static __always_inline void write_answer4(struct iphdr *ip, const struct packet *packet, u8 tos,
					  u8 protocol, u32 length)
{
	ip->version = 4;
	ip->ihl = 5;
	ip->tos = tos;
	ip->tot_len = bpf_htons(sizeof(*ip) + length);
	ip->id = 0;
	ip->frag_off = IP_DF;
	ip->ttl = ANSWER_TTL;
	ip->protocol = protocol;
	ip->check = 0;
	ip->saddr = packet->destination.address[3];
	ip->daddr = packet->source[3];
	ip->check = ~fold(bpf_csum_diff(0, 0, ip, sizeof(*ip), 0));
}

static __always_inline void write_answer6(struct ipv6hdr *ip, const struct packet *packet, u8 tos,
					  u8 protocol, u32 length)
{
	*(u32 *)ip = bpf_htonl(6 << 28 | tos << 20);
	ip->payload_len = bpf_htons(length);
	ip->nexthdr = protocol;
	ip->hop_limit = ANSWER_TTL;
	__builtin_memcpy(&ip->saddr, packet->destination.address, 16);
	__builtin_memcpy(&ip->daddr, packet->source, 16);
}

/* ICMP destination unreachable, fragmentation needed (RFC 792, RFC 1191). */
static __always_inline bool answer_too_big4(struct xdp_md *ctx, const struct packet *packet, u32 mtu)
{
	u32 headers = sizeof(struct iphdr) + ICMP_HEADER;
	u32 quote = packet->l4 + 8 > ICMP_QUOTE ? 60 + 8 : ICMP_QUOTE; /* options end at 60 */
	struct iphdr *ip = make_room(ctx, packet, quote, headers, bpf_htons(ETH_P_IP));
	void *end = (void *)(long)ctx->data_end;
	u16 *icmp;

	if (!ip || (void *)ip + headers + quote > end)
		return false;
	write_answer4(ip, packet, CONTROL_TOS, IPPROTO_ICMP, ICMP_HEADER + quote);
	icmp = (void *)(ip + 1);
	icmp[0] = bpf_htons(ICMP_DEST_UNREACH << 8 | ICMP_FRAG_NEEDED);
	icmp[1] = 0;
	icmp[2] = 0;
	icmp[3] = bpf_htons(mtu);
	icmp[1] = ~fold(bpf_csum_diff(0, 0, icmp, ICMP_HEADER + quote, 0));
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
	write_answer6(ip, packet, CONTROL_TOS, IPPROTO_ICMPV6, body);
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

#if WITH_REJECT
/* The pseudo-header of what is answered, from the addresses of the packet. */
static __always_inline u64 pseudo_sum(const struct packet *packet, u32 length, u8 protocol)
{
	u64 sum = (u64)bpf_htons(length) + bpf_htons(protocol);

	for (int i = packet->is_v6 ? 0 : 3; i < 4; i++)
		sum += (u64)packet->source[i] + packet->destination.address[i];
	return sum;
}

/* ICMP or ICMPv6 port unreachable. A v4 error quotes the header and 8 bytes, a v6 one what fits. */
static __always_inline bool answer_unreachable(struct xdp_md *ctx, const struct packet *packet)
{
	bool is_v6 = packet->is_v6;
	u32 header = is_v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	u32 quote = is_v6 ? packet->length : packet->l4 + 8, length, at;
	u64 sum = 0;
	u16 check;
	u8 *icmp;
	void *ip;

	if (is_v6 && quote > ICMP6_QUOTE)
		quote = ICMP6_QUOTE;
	length = ICMP_HEADER + quote;
	ip = make_room(ctx, packet, quote, header + ICMP_HEADER,
		       is_v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP));
	if (!ip || ip + sizeof(struct ipv6hdr) + ICMP_HEADER > (void *)(long)ctx->data_end)
		return false;
	if (is_v6) {
		write_answer6(ip, packet, CONTROL_TOS, IPPROTO_ICMPV6, length);
		sum = pseudo_sum(packet, length, IPPROTO_ICMPV6);
		icmp = ip + sizeof(struct ipv6hdr);
		icmp[0] = ICMPV6_DEST_UNREACH;
		icmp[1] = ICMPV6_PORT_UNREACH;
	} else {
		write_answer4(ip, packet, CONTROL_TOS, IPPROTO_ICMP, length);
		icmp = ip + sizeof(struct iphdr);
		icmp[0] = ICMP_DEST_UNREACH;
		icmp[1] = ICMP_PORT_UNREACH;
	}
	icmp[2] = icmp[3] = 0;
	*(u32 *)&icmp[4] = 0;
	at = packet->l3 + header;
	check = ~fold(sum + sum_of_frame(ctx, at, length));
	return !bpf_xdp_store_bytes(ctx, at + 2, &check, sizeof(check));
}

/* What a closed port answers (RFC 9293 section 3.10.7.1). */
static __always_inline bool answer_reset(struct xdp_md *ctx, const struct packet *packet)
{
	u32 header = packet->is_v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct tcphdr *tcp = l4_of(data, packet), reset = {};
	int frame = frame_length(ctx), size;
	struct ethhdr *eth;
	void *ip;

	if ((void *)(tcp + 1) > end)
		return false;
	reset.source = tcp->dest;
	reset.dest = tcp->source;
	reset.doff = sizeof(reset) / 4;
	reset.rst = 1;
	if (tcp->ack) {
		reset.seq = tcp->ack_seq;
	} else {
		size = (int)packet->length - packet->l4 - tcp->doff * 4;
		if (size < 0)
			size = 0;
		reset.ack = 1;
		reset.ack_seq = bpf_htonl(packet->sequence + size + tcp->syn + tcp->fin);
	}
	reset.check = ~fold(pseudo_sum(packet, sizeof(reset), IPPROTO_TCP) +
			    bpf_csum_diff(0, 0, (void *)&reset, sizeof(reset), 0));
	if (bpf_xdp_adjust_tail(ctx, (int)(packet->l3 + header + sizeof(reset)) - frame))
		return false;
	eth = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	ip = (void *)eth + packet->l3;
	if ((void *)(eth + 1) > end || ip + header + sizeof(reset) > end)
		return false;
	turn_around(eth);
	if (packet->is_v6)
		write_answer6(ip, packet, 0, IPPROTO_TCP, sizeof(reset));
	else
		write_answer4(ip, packet, 0, IPPROTO_TCP, sizeof(reset));
	__builtin_memcpy(ip + header, &reset, sizeof(reset));
	return true;
}

/* Rejects what no VIP takes; false if it gets no answer, or not now. */
static __always_inline bool reject(struct xdp_md *ctx, const struct packet *packet)
{
	if (packet->is_cut || packet->is_rst || packet->length < packet->l4 + 8 ||
	    !may_be_answered(packet))
		return false;
	if (packet->kind == KIND_TCP)
		return packet->length >= packet->l4 + packet->headers && may_answer(ANSWER_REJECTION) &&
		       answer_reset(ctx, packet);
	return may_answer(ANSWER_REJECTION) && answer_unreachable(ctx, packet);
}
#endif
