/* SPDX-License-Identifier: GPL-2.0-only */
/* For backends: takes packets out of their tunnel (IPIP, IP6IP6, IP4IP6, 6-in-4, and GUE variant 1,
 * draft-ietf-intarea-gue section 4) and passes what was inside to the stack, which has the VIP on
 * its loopback. Works on kernels without tunnel devices, and where these are unwanted.
 *
 *   parse       -> an outer IP header, behind up to two VLAN tags, or not ours
 *   is_tunnel   -> IP in IP by protocol, GUE by port and variant, or not ours
 *   destination, source, lengths, outer checksums, inner header, ECN -> an outcome, counted
 *   take out    -> the Ethernet header moves over the outer headers
 *
 * What is not ours passes untouched. The inner packet is not touched but for ECN. The same in
 * Python: agent/tidegate/spec/decap.py.
 *
 * Build settings; without any of them it takes everything out for everybody, and does not count:
 *   GUE_PORT           UDP destination port, 0 for no GUE
 *   CHECK_DESTINATION  outer destinations must be in decap_addresses
 *   CHECK_SOURCE       outer sources must be in decap_sources
 *   COUNT              outcomes are counted in decap_counts */
#include <uapi/linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include "tunnel.h"

#ifndef GUE_PORT
#define GUE_PORT 6080 /* IANA */
#endif

#define ADDRESS_BITS 160 /* family and words */
#define TAGS 2
#define TAG_BYTES 4
#define VERIFIABLE_BYTES 9216 /* a jumbo frame; the verifier wants a bound */

#define ECN_ECT1 1
#define ECN_ECT0 2
#define ECN_CE 3

/* The family comes first, so that no prefix of one covers an address of the other: these come off
 * the wire, where ::ffff:a.b.c.d may be written by anybody. An IPv4 address is the first word. */
struct address {
	u32 family; /* 4 or 6, in network order */
	u32 words[4];
};

struct prefix {
	u32 length; /* bits, counted from the first of the family */
	struct address address;
};

BPF_TABLE("hash", struct address, u32, decap_addresses, 1);
BPF_F_TABLE("lpm_trie", struct prefix, u32, decap_sources, 1, BPF_F_NO_PREALLOC);
BPF_TABLE("percpu_array", u32, u64, decap_counts, 1);

struct outer {
	struct address destination;
	struct prefix source;
	u32 header; /* bytes of the IP header */
	u32 length; /* bytes of the IP packet, as its header says */
	u8 protocol;
	u8 ecn;
	bool is_v6;
	bool is_plain; /* no options, not a fragment */
};

static __always_inline int counted(u32 outcome, int verdict)
{
#ifdef COUNT
	u64 *count = decap_counts.lookup(&outcome);

	if (count)
		(*count)++;
#endif
	return verdict;
}

static __always_inline bool parse_outer(__be16 kind, void *l3, void *end, struct outer *outer)
{
	if (kind == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = l3;

		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
			return false;
		outer->destination.family = outer->source.address.family = bpf_htonl(4);
		outer->destination.words[0] = ip->daddr;
		outer->source.address.words[0] = ip->saddr;
		outer->header = sizeof(*ip);
		outer->length = bpf_ntohs(ip->tot_len);
		outer->protocol = ip->protocol;
		outer->ecn = ip->tos & 3;
		outer->is_plain = ip->ihl == 5 && !(ip->frag_off & bpf_htons(0x3fff));
		return true;
	}
	if (kind == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = l3;

		if ((void *)(ip + 1) > end || ip->version != 6)
			return false;
		outer->destination.family = outer->source.address.family = bpf_htonl(6);
		__builtin_memcpy(outer->destination.words, &ip->daddr, 16);
		__builtin_memcpy(outer->source.address.words, &ip->saddr, 16);
		outer->header = sizeof(*ip);
		outer->length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
		outer->protocol = ip->nexthdr;
		outer->ecn = ip->flow_lbl[0] >> 4 & 3;
		outer->is_v6 = true;
		outer->is_plain = true;
		return true;
	}
	return false;
}

/* Variant 1 of GUE has no header of its own: its first two bits, 01, are also those of the IP
 * versions 4 and 6. What is not variant 1 is for a GUE socket of the host. */
static __always_inline bool is_tunnel(const struct outer *outer, void *l4, void *end)
{
	struct udphdr *udp = l4;
	u8 *payload = (void *)(udp + 1);

	if (outer->protocol == IPPROTO_IPIP || outer->protocol == IPPROTO_IPV6)
		return true;
	if (!GUE_PORT || outer->protocol != IPPROTO_UDP || !outer->is_plain)
		return false;
	return (void *)(payload + 1) <= end && udp->dest == bpf_htons(GUE_PORT) &&
	       *payload >> 6 == 1;
}

static __always_inline u16 folded(u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* For the verifier: a bound that clang would drop because it knows it (masking also makes it forget
 * the value, so that all rounds of a loop look alike), and a loop's counter that clang
 * would drop because the loop ends without. */
#define BOUND(value, mask)                                                                         \
	do {                                                                                       \
		asm volatile("" : "+r"(value));                                                    \
		(value) &= (mask);                                                                 \
	} while (0)
#define COUNT_LOOP(i) asm volatile("" : "+r"(i))

/* Adds up the datagram, with its checksum, onto the sum of the pseudo-header. The helper wants lengths
 * that are constant and multiples of 4, so the rest is copied and padded with zeros. */
#define CHUNK 256
static __always_inline bool udp_checksum_holds(struct xdp_md *ctx, void *start, u32 bytes, u32 sum)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	u8 rest[CHUNK] = {};
	u32 done = 0;

	if (bytes > VERIFIABLE_BYTES)
		return false;
	for (u32 i = 0; i < VERIFIABLE_BYTES / CHUNK && bytes - done >= CHUNK; i++) {
		COUNT_LOOP(i);
		BOUND(done, 0x3fff);
		if (start + done + CHUNK > end)
			return false;
		sum = bpf_csum_diff(NULL, 0, start + done, CHUNK, sum);
		done += CHUNK;
	}
	bytes -= done;
	BOUND(bytes, CHUNK - 1);
	if (bytes) {
		if (bpf_xdp_load_bytes(ctx, start + done - data, rest, bytes))
			return false;
		sum = bpf_csum_diff(NULL, 0, rest, sizeof(rest), sum);
	}
	return folded(sum) == 0xffff;
}

/* Nobody can check the outer checksums once the outer headers are gone; the inner ones are left to
 * the stack. A UDP checksum of 0 means none, over IPv6 too: a tunnel may do without (RFC 6935). */
static __always_inline bool checksums_hold(struct xdp_md *ctx, const struct outer *outer, void *l3,
					   struct udphdr *udp)
{
	void *end = (void *)(long)ctx->data_end;
	u32 sum = 0;

	if (!outer->is_v6) {
		struct iphdr *ip = l3;

		if ((void *)(ip + 1) > end ||
		    folded(bpf_csum_diff(NULL, 0, (void *)ip, sizeof(*ip), 0)) != 0xffff)
			return false;
	}
	if (outer->protocol != IPPROTO_UDP)
		return true;
	if ((void *)(udp + 1) > end)
		return false;
	if (!udp->check)
		return true;
	for (int i = 0; i < 4; i++) { /* of IPv4 all but the first are 0 */
		sum += folded(outer->source.address.words[i]);
		sum += folded(outer->destination.words[i]);
	}
	sum += udp->len;
	sum += bpf_htons(IPPROTO_UDP);
	return udp_checksum_holds(ctx, udp, bpf_ntohs(udp->len), sum);
}

/* 4 or 6 if a whole packet of the announced version is in these bytes, else 0. */
static __always_inline int version_inside(u8 protocol, void *inner, void *end, u32 room)
{
	struct iphdr *ip = inner;
	struct ipv6hdr *ip6 = inner;
	u32 length;

	if ((void *)(ip + 1) > end)
		return 0;
	if (ip->version == 4 && protocol != IPPROTO_IPV6) {
		length = bpf_ntohs(ip->tot_len);
		return ip->ihl >= 5 && ip->ihl * 4 <= length && length <= room ? 4 : 0;
	}
	if (ip->version == 6 && protocol != IPPROTO_IPIP) {
		if ((void *)(ip6 + 1) > end)
			return 0;
		return bpf_ntohs(ip6->payload_len) + sizeof(*ip6) <= room ? 6 : 0;
	}
	return 0;
}

/* The inner packet takes over the congestion that its tunnel met (RFC 6040 section 4.2, figure 4).
 * False if it cannot: it must be dropped then, or the sender would never know. */
static __always_inline bool carry_ecn(u8 outside, void *inner, void *end, int version)
{
	struct iphdr *ip = inner;
	struct ipv6hdr *ip6 = inner;
	u8 here, there;

	if ((void *)(ip + 1) > end)
		return false;
	here = (version == 4 ? ip->tos : ip6->flow_lbl[0] >> 4) & 3;
	there = here;
	if (outside == ECN_CE) {
		if (!here)
			return false;
		there = ECN_CE;
	} else if (outside == ECN_ECT1 && here == ECN_ECT0) {
		there = ECN_ECT1;
	}
	if (there == here)
		return true;
	if (version == 6) {
		ip6->flow_lbl[0] = (ip6->flow_lbl[0] & 0xcf) | there << 4;
		return true;
	}
	/* RFC 1624 equation 3, over the word that the ECN field is in */
	u16 *word = inner;
	u16 before = *word;
	u16 after = bpf_htons((bpf_ntohs(before) & ~3) | there);
	u32 sum = (u16)~ip->check + (u16)~before + after;

	*word = after;
	ip->check = ~folded(sum);
	return true;
}

/* Copies the Ethernet header, whose size must be a constant, to right before the inner packet. */
static __always_inline bool move_ethernet(void *data, void *end, void *inner, int bytes,
					  __be16 kind)
{
	u8 header[ETH_HLEN + TAGS * TAG_BYTES];

	if (data + bytes > end || inner > end || inner - bytes < data)
		return false;
	__builtin_memcpy(header, data, bytes);
	__builtin_memcpy(inner - bytes, header, bytes);
	*(__be16 *)(inner - 2) = kind;
	return true;
}

int decap(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct outer outer = { .source.length = ADDRESS_BITS };
	u32 l2 = ETH_HLEN;
	void *l3, *l4, *inner;
	u32 room, headers;
	int version;

	if (data + ETH_HLEN > end)
		return XDP_PASS;
	__be16 kind = ((struct ethhdr *)data)->h_proto;

	for (int i = 0; i < TAGS; i++) {
		if (kind != bpf_htons(ETH_P_8021Q) && kind != bpf_htons(ETH_P_8021AD))
			break;
		if (data + ETH_HLEN + (i + 1) * TAG_BYTES > end)
			return XDP_PASS;
		l2 = ETH_HLEN + (i + 1) * TAG_BYTES;
		kind = *(__be16 *)(data + l2 - 2);
	}
	l3 = data + l2;
	if (!parse_outer(kind, l3, end, &outer))
		return XDP_PASS;
	l4 = l3 + outer.header;
	if (!is_tunnel(&outer, l4, end))
		return XDP_PASS;

#ifdef CHECK_DESTINATION
	if (!decap_addresses.lookup(&outer.destination))
		return counted(DECAP_OTHER_DESTINATION, XDP_PASS);
#endif
	if (!outer.is_plain)
		return counted(DECAP_NOT_PLAIN, XDP_PASS);
#ifdef CHECK_SOURCE
	if (!decap_sources.lookup(&outer.source))
		return counted(DECAP_BAD_SOURCE, XDP_DROP);
#endif

	headers = outer.header;
	if (outer.protocol == IPPROTO_UDP)
		headers += sizeof(struct udphdr);
	if (outer.length < headers || l3 + outer.length > end)
		return counted(DECAP_BAD_LENGTH, XDP_DROP);
	room = outer.length - headers;
	if (outer.protocol == IPPROTO_UDP) {
		struct udphdr *udp = l4;

		if ((void *)(udp + 1) > end)
			return counted(DECAP_BAD_LENGTH, XDP_DROP);
		if (bpf_ntohs(udp->len) < sizeof(*udp) || bpf_ntohs(udp->len) - sizeof(*udp) > room)
			return counted(DECAP_BAD_LENGTH, XDP_DROP);
		room = bpf_ntohs(udp->len) - sizeof(*udp);
	}
	if (!checksums_hold(ctx, &outer, l3, l4))
		return counted(DECAP_BAD_CHECKSUM, XDP_DROP);

	BOUND(headers, 0x3f); /* it is at most 48, which the verifier no longer knows */
	inner = l3 + headers;
	version = version_inside(outer.protocol, inner, end, room);
	if (!version)
		return counted(DECAP_BAD_INNER, XDP_DROP);
	if (!carry_ecn(outer.ecn, inner, end, version))
		return counted(DECAP_BAD_ECN, XDP_DROP);

	bool moved;

	kind = version == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	if (l2 == ETH_HLEN)
		moved = move_ethernet(data, end, inner, ETH_HLEN, kind);
	else if (l2 == ETH_HLEN + TAG_BYTES)
		moved = move_ethernet(data, end, inner, ETH_HLEN + TAG_BYTES, kind);
	else
		moved = move_ethernet(data, end, inner, ETH_HLEN + 2 * TAG_BYTES, kind);
	/* Neither can fail: the inner header was read, and it is longer than an Ethernet header. */
	if (!moved || bpf_xdp_adjust_head(ctx, headers))
		return XDP_DROP;

	if (outer.protocol == IPPROTO_UDP)
		return counted(outer.is_v6 ? DECAP_GUE_OVER_SIX : DECAP_GUE_OVER_FOUR, XDP_PASS);
	if (version == 4)
		return counted(outer.is_v6 ? DECAP_FOUR_IN_SIX : DECAP_IPIP, XDP_PASS);
	return counted(outer.is_v6 ? DECAP_SIX_IN_SIX : DECAP_SIX_IN_FOUR, XDP_PASS);
}
