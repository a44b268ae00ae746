/* SPDX-License-Identifier: GPL-2.0-only */
/* For load-balancer hosts, at the tc egress of the balancer's interfaces: sends probes into the same
 * tunnel as the traffic of clients.
 *
 * A probe is an ordinary connection from this host to a VIP. Its socket carries the mark
 * 0x5447 << 16 | id, which names the backend; tables and quarantine are not consulted. What has no
 * such mark, or is not for a VIP, is left to whatever else is on the interface. A probe that cannot
 * be sent is dropped and counted, never sent plain: it would come back to a balancer, and its answer
 * would be that of another backend. The same in Python: agent/tidegate/spec/healthcheck.py.
 *
 * Frames of the host's own stack pass here, so offloads are pending: a checksum that the driver is
 * to fill in stays described by the skb (its place counts from the buffer's start, which does not
 * move), and bpf_skb_adjust_room lowers gso_size by the outer headers, so that what the driver cuts
 * still fits. Headers are written with bpf_skb_store_bytes, because a program that writes to packets
 * directly makes the kernel copy the header of every cloned skb, marked or not.
 *
 * Built with the balancer's constants and every feature, over its maps. */
#include <uapi/linux/bpf.h>
#include <linux/pkt_cls.h>
#include "enums.h"
#include "layout.h"
#include "maps.h"
#include "parse.h"
#include "vip.h"
#include "hash.h"
#include "clock.h"
#include "lines.h"
#include "limit.h"
#include "checksum.h"
#include "ethernet.h"
#include "choice.h"
#include "marks.h"
#include "select.h"
#include "encapsulate.h"
#include "gue.h"

#define MARK 0x5447
#define ID_BITS 16
#define HOPS 64
#define MOST_HEADERS 256 /* Ethernet, IP with options or extension headers, and TCP */
#define MOST_BYTES 0xffff /* of an IP packet */

BPF_TABLE("percpu_array", u32, u64, probe_counts, 1);
BPF_TABLE("array", u32, u64, probe_sent, 1); /* by backend id; read in mapped memory */

/* The headers as they are written, from `eth` on; `unused` puts the IP header where its words are
 * aligned. */
struct outer4 {
	u16 unused;
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
} __attribute__((aligned(8)));

struct outer6 {
	u16 unused;
	struct ethhdr eth;
	struct ipv6hdr ip;
	struct udphdr udp;
} __attribute__((aligned(8)));

/* The sum of the inner packet once its own checksum is filled in, without looking at its payload:
 * transport header and payload add up to what the pseudo-header lacks to 0xffff, and so does an IPv4
 * header by itself (local checksum offload, Documentation/networking/checksum-offloads.rst). False
 * if the headers do not determine it. */
static __always_inline bool sum_inside(struct __sk_buff *skb, const struct packet *packet, u64 *sum)
{
	void *l3 = (void *)(long)skb->data + ETH_HLEN, *end = (void *)(long)skb->data_end;
	u32 size = packet->length - packet->l4;
	u64 pseudo = bpf_htons(packet->destination.protocol) + (u64)bpf_htons(size);

	if (packet->kind == KIND_UDP) {
		struct udphdr *udp = l3 + (packet->l4 & L4_MASK);

		if ((void *)(udp + 1) > end || !udp->check)
			return false;
	}
	if (packet->is_v6) {
		if (packet->l4 != sizeof(struct ipv6hdr) || l3 + sizeof(struct ipv6hdr) > end)
			return false;
		pseudo = (u32)bpf_csum_diff(0, 0, l3 + 8, 32, fold(pseudo));
		*sum += (u32)bpf_csum_diff(0, 0, l3, sizeof(struct ipv6hdr), 0);
	} else if (packet->kind == KIND_ICMP) {
		pseudo = 0;
	} else {
		pseudo += (u64)packet->source[3] + packet->destination.address[3];
	}
	*sum += (u16)~fold(pseudo);
	return true;
}

/* `sum` is that of the outer addresses. */
static __always_inline void write_udp(struct __sk_buff *skb, const struct packet *packet,
				      struct udphdr *udp, u64 hash, u16 port, u64 sum)
{
	u32 length = packet->length + sizeof(*udp);
	u16 check;

	udp->source = bpf_htons(GUE_PORTS | (hash >> 20 & GUE_PORT_BITS));
	udp->dest = bpf_htons(port);
	udp->len = bpf_htons(length);
	/* What is cut up later has many lengths; no checksum is right for all (RFC 6935). */
	if (skb->gso_size || !sum_inside(skb, packet, &sum))
		return;
	sum += (u64)bpf_htons(length) + bpf_htons(IPPROTO_UDP);
	sum += (u64)udp->source + udp->dest + udp->len;
	check = ~fold(sum);
	udp->check = check ? check : 0xffff;
}

/* Makes room for `bytes` of outer headers and writes them, with the Ethernet header in front. */
static __always_inline int insert_outer(struct __sk_buff *skb, void *eth, u32 bytes, u64 flags)
{
	if (bpf_skb_adjust_room(skb, bytes, BPF_ADJ_ROOM_MAC, flags))
		return DROP_NO_HEADROOM;
	if (bpf_skb_store_bytes(skb, 0, eth, ETH_HLEN + bytes, 0))
		return DROP_NO_HEADROOM;
	return DROP_NONE;
}

static __always_inline int push4(struct __sk_buff *skb, const struct packet *packet,
				 const struct choice *choice, const struct backend *backend,
				 const struct link *link)
{
	const struct endpoint *to = &backend->endpoints[backend->selected & 1];
	u8 protocol = packet->is_v6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
	struct outer4 out = {};

	__builtin_memcpy(&out.eth, &link->to4, sizeof(struct macs));
	out.eth.h_proto = bpf_htons(ETH_P_IP);
	if (!backend->gue_port) {
		write_outer4(&out.ip, packet->tos, choice->hash, to, protocol, packet->length);
		return insert_outer(skb, &out.eth, sizeof(out.ip), BPF_F_ADJ_ROOM_ENCAP_L3_IPV4);
	}
	write_outer4(&out.ip, packet->tos, choice->hash, to, IPPROTO_UDP, packet->length + sizeof(out.udp));
	write_udp(skb, packet, &out.udp, choice->hash, backend->gue_port,
		  (u64)out.ip.saddr + out.ip.daddr);
	return insert_outer(skb, &out.eth, sizeof(out.ip) + sizeof(out.udp),
			    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP);
}

static __always_inline int push6(struct __sk_buff *skb, const struct packet *packet,
				 const struct choice *choice, const struct backend *backend,
				 const struct link *link)
{
	const struct endpoint *to = &backend->endpoints[backend->selected & 1];
	u8 protocol = packet->is_v6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
	struct outer6 out = {};

	__builtin_memcpy(&out.eth, &link->to6, sizeof(struct macs));
	out.eth.h_proto = bpf_htons(ETH_P_IPV6);
	if (!backend->gue_port) {
		write_outer6(&out.ip, packet->tos, choice->hash, to, protocol, packet->length);
		return insert_outer(skb, &out.eth, sizeof(out.ip), BPF_F_ADJ_ROOM_ENCAP_L3_IPV6);
	}
	write_outer6(&out.ip, packet->tos, choice->hash, to, IPPROTO_UDP, packet->length + sizeof(out.udp));
	write_udp(skb, packet, &out.udp, choice->hash, backend->gue_port,
		  (u32)bpf_csum_diff(0, 0, (void *)&out.ip.saddr, 32, 0));
	return insert_outer(skb, &out.eth, sizeof(out.ip) + sizeof(out.udp),
			    BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP);
}

/* Probes leave their socket with a hop limit of 1, with which no router passes them on: one that left
 * plain would reach no balancer behind it. In the tunnel they have the usual one. */
static __always_inline bool restore_hops(struct __sk_buff *skb, bool is_v6)
{
	u32 at = ETH_HLEN + (is_v6 ? offsetof(struct ipv6hdr, hop_limit) : offsetof(struct iphdr, ttl));
	u8 before = 0, hops = HOPS;

	if (bpf_skb_load_bytes(skb, at, &before, 1))
		return false;
	if (before == hops)
		return true;
	if (!is_v6 && bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check),
					  bpf_htons(before << 8), bpf_htons(HOPS << 8), 2))
		return false;
	return !bpf_skb_store_bytes(skb, at, &hops, 1, 0);
}

static __always_inline int send_probe(struct __sk_buff *skb, const struct packet *packet,
				      const struct vip *vip)
{
	u32 interface = skb->ifindex, id = skb->mark & ((1 << ID_BITS) - 1);
	struct choice choice = {};
	struct fit fit = {};
	struct backend *backend;
	struct link *link;

	if (packet->kind == KIND_LATER_FRAGMENT || packet->is_first_fragment)
		return DROP_FRAGMENT;
	/* What a host sends is not padded yet. */
	if (packet->length < packet->l4 + packet->headers ||
	    ETH_HLEN + packet->length != skb->len)
		return DROP_BAD_LENGTH;
	backend = backends.lookup(&id);
	if (!backend || !backend->incarnation)
		return DROP_NO_BACKEND;
	link = links.lookup(&interface);
	if (!link)
		return DROP_NO_GATEWAY;
	measure(&fit, backend, link);
	if (!(fit.is_v6 ? link->has_gateway6 : link->has_gateway4))
		return DROP_NO_GATEWAY;
	/* What the driver cuts up fits by its gso_size. */
	if (packet->length > (skb->gso_size ? MOST_BYTES - fit.outer - fit.gue : fit.limit))
		return DROP_TOO_BIG;
	choice.hash = flow_hash(packet, vip);
	if (!restore_hops(skb, packet->is_v6))
		return DROP_NO_HEADROOM;
	return fit.is_v6 ? push6(skb, packet, &choice, backend, link) :
			   push4(skb, packet, &choice, backend, link);
}

int healthcheck(struct __sk_buff *skb)
{
	struct packet packet = {};
	u32 reason, pulled;
	struct vip *vip;
	u64 *count, *sent;
	u32 id = skb->mark & ((1 << ID_BITS) - 1);

	if (skb->mark >> ID_BITS != MARK)
		return TC_ACT_UNSPEC;
	/* Headers of what this host sends are in the linear part, and this does nothing. */
	pulled = skb->len < MOST_HEADERS ? skb->len : MOST_HEADERS;
	if ((void *)(long)skb->data + pulled > (void *)(long)skb->data_end)
		bpf_skb_pull_data(skb, pulled);
	if (!parse((void *)(long)skb->data, (void *)(long)skb->data_end, &packet) ||
	    packet.kind == KIND_UNREADABLE)
		return TC_ACT_UNSPEC;
	if (packet.l3 != ETH_HLEN)
		return TC_ACT_UNSPEC;
	vip = find_vip(&packet);
	if (!vip)
		return TC_ACT_UNSPEC;

	reason = send_probe(skb, &packet, vip);
	count = probe_counts.lookup(&reason);
	if (count)
		(*count)++;
	/* Who waits for the answer may believe that there is none: what is too big for the tunnel is too
	 * big for clients. For other reasons it is this host that fails. */
	sent = reason == DROP_NONE || reason == DROP_TOO_BIG ? probe_sent.lookup(&id) : NULL;
	if (sent)
		__sync_fetch_and_add(sent, 1);
	return reason ? TC_ACT_SHOT : TC_ACT_OK;
}
