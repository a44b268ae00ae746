/* SPDX-License-Identifier: GPL-2.0-only */
/* From a frame to a packet: addresses, ports, flags and lengths, or "not ours".
 *
 * Nothing is dropped or counted here: before the VIP look-up no packet is known to be ours. What
 * cannot be read (truncated, another protocol, a later fragment) is not for a VIP and passes. */
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#define MAPPED_PREFIX bpf_htonl(0xffff)
#define IP_DF bpf_htons(0x4000)
#define IP_FRAGMENT_BITS bpf_htons(0x3fff) /* more fragments, and the offset */
#define IP_OFFSET_BITS bpf_htons(0x1fff)

struct packet {
	u32 source[4];
	struct vip_key destination;
	u32 length; /* bytes of the IP packet, from its own header */
	u16 source_port;
	bool is_v6;
	bool is_fragment;
	bool is_cut; /* the frame ends before the IP packet does */
	bool is_syn; /* SYN without ACK */
	bool is_rst;
	u8 tos; /* traffic class in IPv6 */
	u32 headers; /* bytes of the IP and transport headers */
};

/* True if the packet has addresses and ports that a VIP could have. */
static __always_inline bool parse(void *data, void *end, struct packet *packet)
{
	struct ethhdr *eth = data;
	void *l3 = eth + 1;
	void *l4;

	if (l3 > end)
		return false;

	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = l3;

		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
			return false;
		if (ip->frag_off & IP_OFFSET_BITS)
			return false;
		packet->source[2] = packet->destination.address[2] = MAPPED_PREFIX;
		packet->source[3] = ip->saddr;
		packet->destination.address[3] = ip->daddr;
		packet->destination.protocol = ip->protocol;
		packet->length = bpf_ntohs(ip->tot_len);
		packet->tos = ip->tos;
		packet->is_fragment = ip->frag_off & IP_FRAGMENT_BITS;
		packet->headers = ip->ihl * 4;
		l4 = l3 + packet->headers;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = l3;

		if ((void *)(ip + 1) > end || ip->version != 6)
			return false;
		__builtin_memcpy(packet->source, &ip->saddr, 16);
		__builtin_memcpy(packet->destination.address, &ip->daddr, 16);
		packet->destination.protocol = ip->nexthdr;
		packet->length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
		packet->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
		packet->is_v6 = true;
		packet->headers = sizeof(*ip);
		l4 = ip + 1;
	} else {
		return false;
	}

	if (packet->destination.protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;

		if ((void *)(tcp + 1) > end)
			return false;
		packet->source_port = tcp->source;
		packet->destination.port = tcp->dest;
		packet->is_syn = tcp->syn && !tcp->ack;
		packet->is_rst = tcp->rst;
		packet->headers += sizeof(*tcp);
	} else if (packet->destination.protocol == IPPROTO_UDP) {
		struct udphdr *udp = l4;

		if ((void *)(udp + 1) > end)
			return false;
		packet->source_port = udp->source;
		packet->destination.port = udp->dest;
		packet->headers += sizeof(*udp);
	} else {
		return false;
	}
	packet->is_cut = l3 + packet->length > end;
	return true;
}
