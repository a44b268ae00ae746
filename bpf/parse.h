/* SPDX-License-Identifier: GPL-2.0-only */
/* From a frame to a packet: addresses, ports, flags and lengths.
 *
 * Nothing is dropped or counted here: before the look-up of the address no packet is known to be
 * ours. */
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include "icmp.h"

#define MAPPED_PREFIX bpf_htonl(0xffff)
#define IP_DF bpf_htons(0x4000)
#define IP_FRAGMENT_BITS bpf_htons(0x3fff) /* more fragments, and the offset */
#define IP_OFFSET_BITS bpf_htons(0x1fff)
#define IP6_OFFSET_BITS bpf_htons(0xfff8)
#define IP6_MORE_BIT bpf_htons(0x0001)

#define VLAN_TAGS 2 /* 802.1ad outside 802.1Q */
#define EXTENSION_HEADERS 4

enum kind { KIND_UNREADABLE, KIND_TCP, KIND_UDP, KIND_ICMP, KIND_LATER_FRAGMENT };

struct vlan_tag {
	u16 tci;
	u16 next; /* EtherType of what follows */
};

struct extension {
	u8 next;
	u8 length; /* in 8 bytes, without the first 8 */
	u16 offset; /* of the fragment header: offset and more-bit */
	u32 id;
};

struct packet {
	u32 source[4];
	u32 sender[4]; /* of an ICMP error: its source is that of the flow */
	struct vip_key destination; /* with the port as it is in the packet */
	u32 length; /* bytes of the IP packet, from its own header */
	u32 fragment_id;
	u32 sequence; /* number of the first byte of a TCP segment */
	u16 source_port;
	u16 l4; /* bytes of the IP packet before the transport header */
	u16 types[VLAN_TAGS]; /* EtherTypes of the VLAN tags, outermost first */
	u16 tags[VLAN_TAGS]; /* and their contents */
	u8 l3; /* bytes of the frame before the IP header */
	u8 headers; /* bytes of the transport header, without options */
	u8 kind;
	u8 tos; /* traffic class in IPv6 */
	bool is_ip; /* it has an IP header, so addresses and length are known */
	bool is_v6;
	bool is_first_fragment;
	bool allows_fragments; /* IPv4 without DF */
	bool is_cut; /* the frame ends before the IP packet does */
	bool is_syn; /* SYN without ACK */
	bool is_rst;
	bool is_fin;
	bool is_error; /* an ICMP error; addresses and ports are those of the flow it quotes */
};

/* True of ::ffff:a.b.c.d, which no IPv6 packet has (RFC 4291 section 2.5.5.2; RFC 4038 section 4.2). */
static __always_inline bool is_mapped(const u32 *address)
{
	return !address[0] && !address[1] && address[2] == MAPPED_PREFIX;
}

/* The transport header. The mask states for the verifier a bound that parsing has ensured. */
#define L4_MASK 0x3fff

static __always_inline void *l4_of(void *data, const struct packet *packet)
{
	return data + packet->l3 + (packet->l4 & L4_MASK);
}

/* Walks IPv6 extension headers. Returns false if they are cut off. */
static __always_inline bool skip_extensions(void *l3, void *end, struct packet *packet)
{
	u8 next = packet->destination.protocol;
	u32 at = sizeof(struct ipv6hdr);
	bool is_whole = true;

	for (int i = 0; i < EXTENSION_HEADERS; i++) {
		struct extension *header = l3 + at;

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS &&
		    next != IPPROTO_FRAGMENT)
			break;
		if ((void *)(header + 1) > end) {
			is_whole = false;
			break;
		}
		if (next == IPPROTO_FRAGMENT) {
			packet->fragment_id = header->id;
			if (header->offset & IP6_OFFSET_BITS)
				packet->kind = KIND_LATER_FRAGMENT;
			else if (header->offset & IP6_MORE_BIT)
				packet->is_first_fragment = true;
			at += sizeof(*header);
		} else {
			at += (header->length + 1) * 8;
		}
		next = header->next;
		if (packet->kind == KIND_LATER_FRAGMENT)
			break; /* what follows is the middle of something */
	}
	packet->destination.protocol = next;
	packet->l4 = at;
	return is_whole;
}

static __always_inline bool parse_l3(void *l3, void *end, u16 ethertype, struct packet *packet)
{
	if (ethertype == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = l3;

		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
			return false;
		packet->source[2] = packet->destination.address[2] = MAPPED_PREFIX;
		packet->source[3] = ip->saddr;
		packet->destination.address[3] = ip->daddr;
		packet->destination.protocol = ip->protocol;
		packet->length = bpf_ntohs(ip->tot_len);
		packet->tos = ip->tos;
		packet->fragment_id = ip->id;
		if (ip->frag_off & IP_OFFSET_BITS)
			packet->kind = KIND_LATER_FRAGMENT;
		else
			packet->is_first_fragment = ip->frag_off & IP_FRAGMENT_BITS;
		packet->allows_fragments = !(ip->frag_off & IP_DF);
		packet->l4 = ip->ihl * 4;
		packet->is_ip = true;
		return true;
	}
#if WITH_V6
	if (ethertype == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = l3;

		if ((void *)(ip + 1) > end || ip->version != 6)
			return false;
		__builtin_memcpy(packet->source, &ip->saddr, 16);
		__builtin_memcpy(packet->destination.address, &ip->daddr, 16);
		/* Our maps have IPv4 addresses in this form: it would be taken for an IPv4 VIP. */
		if (is_mapped(packet->destination.address))
			return false;
		packet->destination.protocol = ip->nexthdr;
		packet->length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
		packet->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
		packet->is_v6 = packet->is_ip = true;
		return skip_extensions(l3, end, packet);
	}
#endif
	return false;
}

static __always_inline void parse_l4(void *l4, void *end, struct packet *packet)
{
	u8 protocol = packet->destination.protocol;

	if (protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;

		if ((void *)(tcp + 1) > end)
			return;
		packet->kind = KIND_TCP;
		packet->source_port = tcp->source;
		packet->destination.port = tcp->dest;
		packet->is_syn = tcp->syn && !tcp->ack;
		packet->is_rst = tcp->rst;
		packet->is_fin = tcp->fin;
		packet->sequence = bpf_ntohl(tcp->seq);
		packet->headers = sizeof(*tcp);
	} else if (protocol == IPPROTO_UDP) {
		struct udphdr *udp = l4;

		if ((void *)(udp + 1) > end)
			return;
		packet->kind = KIND_UDP;
		packet->source_port = udp->source;
		packet->destination.port = udp->dest;
		packet->headers = sizeof(*udp);
	} else if (protocol == (packet->is_v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP)) {
		struct icmphdr *icmp = l4;

		if ((void *)(icmp + 1) > end)
			return;
		packet->kind = KIND_ICMP;
		packet->headers = sizeof(*icmp);
	}
}

/* True if the packet has an IP header. Its kind is KIND_UNREADABLE if its transport header is cut
 * off, of another protocol, or behind too many others. */
static __always_inline bool parse(void *data, void *end, struct packet *packet)
{
	struct ethhdr *eth = data;
	struct vlan_tag *tag = (void *)(eth + 1);
	u16 ethertype;
	void *l3;

	if ((void *)(eth + 1) > end)
		return false;
	ethertype = eth->h_proto;
	packet->l3 = sizeof(*eth);
	for (int i = 0; i < VLAN_TAGS; i++) {
		if (ethertype != bpf_htons(ETH_P_8021Q) && ethertype != bpf_htons(ETH_P_8021AD))
			break;
		if ((void *)(tag + 1) > end)
			return false;
		packet->types[i] = ethertype;
		packet->tags[i] = tag->tci;
		ethertype = tag->next;
		packet->l3 += sizeof(*tag);
		tag++;
	}

	l3 = data + packet->l3;
	/* Fragments of any protocol may be ours; the VIP look-up by address decides. */
	if (parse_l3(l3, end, ethertype, packet) && packet->kind != KIND_LATER_FRAGMENT)
		parse_l4(l3 + packet->l4, end, packet);
	packet->is_cut = l3 + packet->length > end;
	return packet->is_ip;
}
