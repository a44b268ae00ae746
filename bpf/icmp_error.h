/* SPDX-License-Identifier: GPL-2.0-only */
/* ICMP errors for a VIP's flows: from routers, about packets that a backend sent as the VIP.
 *
 * The quoted packet identifies the flow, with source and destination swapped; eight bytes of
 * its transport header are enough, since the ports are the first four. The error goes to the owner
 * of that flow, wherever its entry was made: the connection table is visible to every CPU. */
#pragma once

#define V4_LEAST_MTU 68 /* RFC 791 */
#define V6_LEAST_MTU 1280 /* RFC 8200 section 5 */
#define QUOTED_PORTS 4
/* The longest that a router sends (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 c). */
#define V4_LONGEST_ERROR 576
#define V6_LONGEST_ERROR 1280

static __always_inline bool is_error4(const struct icmphdr *icmp)
{
	return icmp->type == ICMP_DEST_UNREACH || icmp->type == ICMP_TIME_EXCEEDED ||
	       icmp->type == ICMP_PARAMETERPROB;
}

static __always_inline bool is_error6(const struct icmphdr *icmp)
{
	return icmp->type >= ICMPV6_DEST_UNREACH && icmp->type <= ICMPV6_PARAMPROB;
}

/* An MTU below the least that a link may have: its sender wants to force small packets. In IPv4 0 is
 * none: a router older than RFC 1191 does not say it (section 5), and hosts know what to do. */
static __always_inline bool mtu_is_absurd(const struct icmphdr *icmp, bool is_v6)
{
	u32 rest = bpf_ntohl(icmp->rest);

	if (is_v6)
		return icmp->type == ICMPV6_PKT_TOOBIG && rest < V6_LEAST_MTU;
	return icmp->type == ICMP_DEST_UNREACH && icmp->code == ICMP_FRAG_NEEDED &&
	       (rest & 0xffff) && (rest & 0xffff) < V4_LEAST_MTU;
}

static __always_inline bool is_too_long_for_error(const struct packet *packet)
{
	return packet->length > (packet->is_v6 ? V6_LONGEST_ERROR : V4_LONGEST_ERROR);
}

/* Anybody can send errors that quote a flow: what the backends get of them has a limit. */
static __always_inline bool may_forward_error(const struct vip *vip)
{
	u32 id = vip->id;
	struct bucket *bucket = error_limits.lookup(&id);

	return bucket && take(bucket, ERROR_RATE, bpf_jiffies64());
}

/* Reads the quoted packet into `quoted`: addresses, protocol, and where its ports are. */
static __always_inline u16 *read_quoted(struct packet *quoted, void *l3, void *end, bool is_v6)
{
	u16 type = is_v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	u16 *ports;

	if (!parse_l3(l3, end, type, quoted) || quoted->kind == KIND_LATER_FRAGMENT)
		return NULL;
	if (quoted->destination.protocol == IPPROTO_TCP)
		quoted->kind = KIND_TCP;
	else if (quoted->destination.protocol == IPPROTO_UDP)
		quoted->kind = KIND_UDP;
	else
		return NULL;
	ports = l3 + quoted->l4;
	if ((void *)ports + QUOTED_PORTS > end)
		return NULL;
	return ports;
}

/* Makes the packet one of the quoted flow, so that VIP and owner are found as for any packet.
 * Returns false if no flow of the error's own destination is quoted. */
static __always_inline bool adopt_quoted_flow(struct packet *packet, void *data, void *end)
{
	void *l3 = l4_of(data, packet) + sizeof(struct icmphdr);
	struct packet quoted = {};
	u16 *ports = read_quoted(&quoted, l3, end, packet->is_v6);

	if (!ports)
		return false;
	for (int i = 0; i < 4; i++) {
		if (quoted.source[i] != packet->destination.address[i])
			return false;
		packet->sender[i] = packet->source[i];
		packet->source[i] = quoted.destination.address[i];
	}
	packet->destination.port = ports[0];
	packet->source_port = ports[1];
	packet->destination.protocol = quoted.destination.protocol;
	packet->kind = quoted.kind;
	packet->is_error = true;
	return true;
}
