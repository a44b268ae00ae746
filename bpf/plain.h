/* SPDX-License-Identifier: GPL-2.0-only */
/* The short way: plain packets of flows that are known, or that need none to be.
 *
 * Nearly every packet is one: IPv4 without options or IPv6 without extension headers, TCP or UDP, no
 * fragment, no VLAN tag, for a VIP that asks for nothing special, and forwarded by its entry or, where
 * neither entry nor mark could say otherwise, by the table. Whatever is not leaves for the long way (balancer.c),
 * which begins again; nothing was changed then. Both ways take the same steps (vip.h, hash.h, lines.h,
 * select.h, encapsulate.h), and the specification knows of one way alone: this one is shorter because
 * it has nothing to remember between the steps. */
#pragma once

#define LONG_WAY -3

/* A plain packet: what parsing found. All is in registers or on the stack. */
struct plain {
	struct packet packet; /* addresses, ports, protocol, length, tos and is_v6 are filled */
	u32 padding; /* bytes of the frame behind the IP packet */
	bool is_tcp;
	bool is_syn;
};

struct target {
	struct backend *backend;
	u32 id;
	u8 decision;
	bool is_new; /* to be entered there */
};

static __always_inline bool parse_plain(struct plain *plain, void *data, void *end, bool is_v6)
{
	struct packet *packet = &plain->packet;
	void *l3 = data + sizeof(struct ethhdr), *l4;
	u32 headers, frame, length;
	u8 protocol;

	if (is_v6) {
		struct ipv6hdr *ip = l3;

		l4 = ip + 1;
		if (l4 + sizeof(struct udphdr) > end || ip->version != 6)
			return false;
		__builtin_memcpy(packet->source, &ip->saddr, 16);
		__builtin_memcpy(packet->destination.address, &ip->daddr, 16);
		if (is_mapped(packet->destination.address) || is_mapped(packet->source))
			return false;
		packet->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
		length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
		protocol = ip->nexthdr;
		headers = sizeof(*ip);
	} else {
		struct iphdr *ip = l3;

		l4 = ip + 1;
		if (l4 + sizeof(struct udphdr) > end || *(u8 *)ip != 0x45 ||
		    ip->frag_off & IP_FRAGMENT_BITS)
			return false;
		packet->source[2] = packet->destination.address[2] = MAPPED_PREFIX;
		packet->source[3] = ip->saddr;
		packet->destination.address[3] = ip->daddr;
		packet->tos = ip->tos;
		length = bpf_ntohs(ip->tot_len);
		protocol = ip->protocol;
		headers = sizeof(*ip);
	}
	if (protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;

		if ((void *)(tcp + 1) > end || tcp->fin || tcp->rst)
			return false;
		plain->is_tcp = true;
		plain->is_syn = tcp->syn && !tcp->ack;
		headers += sizeof(*tcp);
#if WITH_UDP
	} else if (protocol == IPPROTO_UDP) {
		headers += sizeof(struct udphdr);
#endif
	} else {
		return false;
	}
	frame = (u64)end - (u64)l3;
	if (length < headers || length > frame)
		return false;
	packet->source_port = ((u16 *)l4)[0];
	packet->destination.port = ((u16 *)l4)[1];
	packet->destination.protocol = protocol;
	packet->is_v6 = is_v6;
	packet->length = length;
	plain->padding = frame - length;
	return true;
}

/* True if the VIP wants more for this packet than the short way has. */
static __always_inline bool wants_more(const struct vip *vip, const struct plain *plain, u64 hash)
{
	if (vip->flags & VIP_LONG_WAY)
		return true;
#if WITH_CLAMP || WITH_SYN_LIMIT
	if (plain->is_syn && vip->flags & VIP_SYN_LONG_WAY)
		return true;
#endif
#if WITH_EVENTS
	if (vip->flags & VIP_SAMPLED && (hash & SAMPLED_BITS) < vip->sampling)
		return true;
#endif
	return false;
}

enum known { UNKNOWN, KNOWN, UNCLEAR };

/* The entry of a flow that is neither ending nor contested, with its backend; the entry notes it. */
static __always_inline enum known follow_plain(struct target *target, const struct vip *vip,
					       const struct plain *plain, u64 key)
{
	u32 tick = tick_now(), state, number = home_of(key, FLOW_PAIRS);
	u64 fingerprint = fingerprint_of(key);
	struct line *line = flows.lookup(&number);
	struct found found;

	if (!line)
		return UNCLEAR;
	if (!find_in_line(&found, line, number, fingerprint)) {
		number ^= 1;
		line = flows.lookup(&number);
		if (!line || !find_in_line(&found, line, number, fingerprint))
			return UNKNOWN;
	}
	if (found.state & (FLOW_ENDING | FLOW_CONTESTED | FLOW_COPIED))
		return UNCLEAR;
#if WITH_UDP
	if (!plain->is_tcp && vip->idle && age_of(found.state, tick) > ticks_of(vip->idle))
		return UNCLEAR;
#endif
	target->id = backend_of(found.owner);
	target->backend = usable(target->id, incarnation_of(found.owner));
	target->decision = BY_TRACKED;
	if (!target->backend)
		return UNCLEAR;
	state = state_of(tick, vip->id, (found.state & FLOW_FLAGS) | FLOW_SPOKE);
	if (state != found.state)
		line->states[found.at] = state;
	return KNOWN;
}

/* The owner of the slot, where no entry and no mark could name another one. */
static __always_inline bool go_by_table(struct target *target, const struct vip *vip,
					const struct plain *plain, u64 hash)
{
	u32 pool = vip->pool, first = 0;
	void *blob = outer.lookup(&pool);
	struct table *table = blob ? bpf_map_lookup_elem(blob, &first) : NULL;
	struct slot *slot = table ? slot_at(table, slot_of(hash)) : NULL;

	if (!slot)
		return false;
	if (plain->is_tcp && is_tracking(vip) &&
	    (slot->fallback & MAY_BE_TRACKED || vip->flags & VIP_MOVED))
		return false;
	target->id = slot->current;
	target->backend = usable(target->id, ANY_INCARNATION);
	target->decision = !plain->is_tcp ? BY_DATAGRAM : plain->is_syn ? BY_SYN : BY_CURRENT;
	return target->backend;
}

static __always_inline bool choose_plain(struct target *target, const struct vip *vip,
					 const struct plain *plain, u64 hash)
{
	bool is_read = plain->is_tcp ? is_full(vip) && !plain->is_syn : is_tracking(vip);

	target->is_new = false;
	if (is_read) {
		enum known known = follow_plain(target, vip, plain, hash ^ vip->salt);

		if (known != UNKNOWN)
			return known == KNOWN;
		/* If the limit on new entries refuses it, that is an event. */
		if (vip->flags & VIP_SAMPLED)
			return false;
		target->is_new = true;
	}
	return go_by_table(target, vip, plain, hash);
}

static __always_inline void enter_plain(const struct target *target, const struct vip *vip, u64 key,
					struct vip_counters *counters)
{
	u64 owner = owner_of(key, target->id, target->backend->incarnation);
	u32 id = vip->id, tick = tick_now(), place = PLACES;
	struct bucket *budget = insert_limits.lookup(&id);
	struct pair pair;

	if (budget && take(budget, vip->insert_rate, bpf_jiffies64()) && flow_pair(&pair, key))
		place = room_in(&pair, tick, id);
	if (place < PLACES) {
		put_at(&pair, place, owner, state_of(tick, id, 0));
		counters->tracked++;
	} else {
		counters->untracked++;
	}
}

static __always_inline int send_plain(struct xdp_md *ctx, const struct plain *plain,
				      const struct endpoint *to, const struct link *link, u64 hash,
				      bool over_v6)
{
	u32 outer = over_v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	u8 protocol = plain->packet.is_v6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
	struct ethhdr *eth;
	void *ip, *end;

	if (bpf_xdp_adjust_head(ctx, -(int)outer))
		return LONG_WAY;
	eth = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	ip = eth + 1;
	if (ip + outer > end)
		return XDP_ABORTED; /* it was just made; the verifier does not know */
	write_macs(eth, over_v6 ? &link->to6 : &link->to4);
	eth->h_proto = over_v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	if (over_v6)
		write_outer6(ip, plain->packet.tos, hash, to, protocol, plain->packet.length);
	else
		write_outer4(ip, plain->packet.tos, hash, to, protocol, plain->packet.length);
	return XDP_TX;
}

static __always_inline void finish_plain(const struct vip *vip, const struct target *target,
					 u64 hash, u32 bytes)
{
	u32 vip_id = vip->id, id = target->id;
	struct vip_counters *of_vip = vip_counts.lookup(&vip_id);
	struct backend_counters *of_backend = backend_counts.lookup(&id);

	if (of_vip) {
		of_vip->packets++;
		of_vip->bytes += bytes;
		of_vip->decisions[target->decision]++;
		if (target->is_new)
			enter_plain(target, vip, hash ^ vip->salt, of_vip);
	}
	if (of_backend) {
		of_backend->packets++;
		of_backend->bytes += bytes;
	}
}

static __always_inline int go_plain(struct xdp_md *ctx, bool is_v6)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u32 interface = ctx->ingress_ifindex, limit, outer;
	struct plain plain = {};
	struct target target;
	struct endpoint *to;
	struct link *link;
	struct vip *vip;
	bool over_v6;
	int verdict;
	u64 hash;

	if (!parse_plain(&plain, data, end, is_v6))
		return LONG_WAY;
	vip = find_one(&plain.packet);
	if (!vip)
		return LONG_WAY;
	hash = hash_of(&plain.packet, vip->tag, 0);
	if (wants_more(vip, &plain, hash) || !choose_plain(&target, vip, &plain, hash))
		return LONG_WAY;
	link = links.lookup(&interface);
	if (!link)
		return LONG_WAY;
#if WITH_GUE
	if (target.backend->gue_port)
		return LONG_WAY;
#endif
	to = &target.backend->endpoints[target.backend->selected & 1];
	over_v6 = to->family == 6;
	outer = over_v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	limit = link->mtu;
	if (target.backend->mtu && target.backend->mtu < limit)
		limit = target.backend->mtu;
	if (plain.packet.length + outer > limit ||
	    !(over_v6 ? link->has_gateway6 : link->has_gateway4))
		return LONG_WAY;
	if (plain.padding && bpf_xdp_adjust_tail(ctx, -(int)plain.padding))
		return LONG_WAY;
	verdict = over_v6 ? send_plain(ctx, &plain, to, link, hash, true) :
			    send_plain(ctx, &plain, to, link, hash, false);
	if (verdict == XDP_TX)
		finish_plain(vip, &target, hash, plain.packet.length);
	return verdict;
}

/* Returns the verdict, or LONG_WAY. What is for no VIP's address passes before anything is parsed. */
static __always_inline int short_way(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u32 interface = ctx->ingress_ifindex;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end || !may_be_for_vip(data, end) ||
	    !is_ours(eth, links.lookup(&interface)))
		return XDP_PASS;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return go_plain(ctx, false);
#if WITH_V6
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return go_plain(ctx, true);
#endif
	return LONG_WAY;
}
