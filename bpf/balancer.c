/* SPDX-License-Identifier: GPL-2.0-only */
/* The packet path of a Tidegate load balancer, top to bottom:
 *
 *   plain.h        the short way of plain packets, through some of what follows
 *   parse.h        frame -> packet, or not ours
 *   vip.h          is it for us at all
 *   answer.h       pings, and packets too big
 *   icmp_error.h   errors: to the owner of the flow that they quote
 *   client.h       denied, routed to another pool, too many SYNs
 *   fragment.h     later fragments follow the first
 *   quic.h         the server id in the connection id
 *   lines.h        the tables that packets write
 *   choice.h       the backend of a packet, and what it is chosen from
 *   marks.h        marks of SYNs
 *   select.h       connection table, marks, Maglev table -> backend
 *   clamp.h        MSS on SYN
 *   encapsulate.h  outer header; transmit to the gateway
 *   gue.h          and a UDP header, where the pool wants GUE
 *   events.h       events of sampled flows, into a ring buffer
 *
 * What is not for a VIP passes to the host's stack untouched. What is, leaves encapsulated, is
 * answered, or is dropped with a reason that is counted.
 *
 * The agent compiles this with build constants (TABLE_SIZE, HASH_KEY*, SOURCE*) and with WITH_*
 * switches: a feature that no document in force uses is not compiled in. */
#include <uapi/linux/bpf.h>
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
#include "answer.h"
#include "icmp_error.h"
#include "client.h"
#include "choice.h"
#include "marks.h"
#include "select.h"
#include "fragment.h"
#include "quic.h"
#include "clamp.h"
#include "encapsulate.h"
#include "gue.h"
#include "events.h"
#include "plain.h"

/* What one packet's steps hand on to the next. It is kept in a map and not on the stack: to the
 * verifier a value read from a map may be anything, so it checks each step once, and not once for
 * each path that leads there. STEP makes the compiler read the values back too. */
struct scratch {
	struct packet packet;
	struct choice choice;
	struct fit fit;
#if WITH_PREFIXES
	struct vip vip;
#endif
};

BPF_TABLE("percpu_array", u32, struct scratch, scratches, 1);

/* Outcomes beside the reasons for a drop, which are positive. DROP_NONE: to be forwarded. */
#define ANSWERED -1
#define NOT_OURS -2

/* Chooses the backend of a packet, or returns the reason for a drop. */
static __always_inline int decide(struct choice *choice, struct xdp_md *ctx, struct vip *vip,
				  struct packet *packet)
{
#if WITH_FRAGMENTS
	if (packet->kind == KIND_LATER_FRAGMENT)
		return follow_fragment(choice, packet);
#else
	if (packet->kind == KIND_LATER_FRAGMENT)
		return DROP_FRAGMENT;
#endif
	choice->pool = pool_for(vip, packet);
	if (!choice->pool || (packet->is_error && is_denied(vip->id, packet->sender)))
		return DROP_DENIED;
#if WITH_SYN_LIMIT
	if (packet->is_syn && vip->syn_rate && !syn_is_within_limit(choice->prefix, vip, packet))
		return DROP_SYN_LIMIT;
#endif
#if WITH_QUIC
	if (packet->kind == KIND_UDP && vip->quic_length && !packet->is_error &&
	    choose_quic(choice, (void *)(long)ctx->data, (void *)(long)ctx->data_end, vip, packet))
		return DROP_NONE;
#endif
	return select_backend(choice, vip, packet);
}

/* ICMP to a VIP's address: answers a ping; makes an error a packet of the flow that it quotes, which
 * is then to be forwarded (DROP_NONE). */
static __always_inline int handle_icmp(struct xdp_md *ctx, struct vip **vip, struct packet *packet)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct icmphdr *icmp = l4_of(data, packet);
	struct vip *flow_of;

	if ((void *)(icmp + 1) > end)
		return NOT_OURS;
	if (icmp->type == (packet->is_v6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO) && !icmp->code) {
		if (!((*vip)->flags & VIP_ECHO))
			return NOT_OURS; /* the host may want to answer itself */
		if (packet->is_first_fragment)
			return DROP_FRAGMENT;
		if (!may_be_answered(packet))
			return DROP_BAD_SOURCE;
		if (!may_answer(ANSWER_PING))
			return DROP_ECHO_LIMIT;
		return answer_echo(data, end, packet) ? ANSWERED : DROP_BAD_LENGTH;
	}
	if (!(packet->is_v6 ? is_error6(icmp) : is_error4(icmp)))
		return NOT_OURS; /* neighbour discovery, above all */
	if (is_too_long_for_error(packet))
		return DROP_BAD_LENGTH;
	if (mtu_is_absurd(icmp, packet->is_v6))
		return DROP_ICMP_MTU;
	if (!adopt_quoted_flow(packet, data, end))
		return DROP_ICMP_UNKNOWN;
	flow_of = find_vip(packet);
	if (!flow_of)
		return DROP_ICMP_UNKNOWN;
	*vip = flow_of;
	return may_forward_error(flow_of) ? DROP_NONE : DROP_ICMP_LIMIT;
}

static __always_inline int forward(struct xdp_md *ctx, struct vip *vip, struct scratch *scratch,
				   struct vip_counters *counters)
{
	struct packet *packet = &scratch->packet;
	struct choice *choice = &scratch->choice;
	struct fit *fit = &scratch->fit;
	u32 interface = ctx->ingress_ifindex, id;
	struct backend *backend;
	struct link *link;
	int reason;

	choice->hash = flow_hash(packet, vip);
	choice->key = tracking_key(packet, vip, choice->hash);
	reason = decide(choice, ctx, vip, packet);
	if (reason)
		return reason;
	if (packet->is_error)
		choice->decision = BY_ERROR;

	STEP();

	link = links.lookup(&interface);
	id = choice->id;
	backend = backends.lookup(&id);
	if (!link || !backend)
		return DROP_NO_GATEWAY;
	measure(fit, backend, link);
	if (!(fit->is_v6 ? link->has_gateway6 : link->has_gateway4))
		return DROP_NO_GATEWAY;
	/* No sender of it would learn anything from an answer but to send ever smaller ones. */
	if (packet->length > link->mtu && !packet->is_error)
		return DROP_MERGED;
	if (packet->length > fit->limit) {
		/* Only who asked for no fragments is told (RFC 792); to make them is beyond XDP. */
		if (packet->allows_fragments || !may_be_answered(packet) || !may_answer(ANSWER_TOO_BIG))
			return DROP_TOO_BIG;
		if (!(packet->is_v6 ? answer_too_big6(ctx, packet, fit->limit) :
				      answer_too_big4(ctx, packet, fit->limit)))
			return DROP_TOO_BIG;
		return ANSWERED;
	}
	STEP();
#if WITH_CLAMP
	if (packet->is_syn && vip->mss && !packet->is_error)
		clamp_mss((void *)(long)ctx->data, (void *)(long)ctx->data_end, packet, vip->mss);
	STEP();
#endif
	reason = encapsulate(ctx, packet, choice, backend, link, fit);
	if (reason)
		return reason;
	STEP();
#if WITH_GUE
	if (fit->gue && fill_gue(ctx, packet, choice, fit, backend->gue_port))
		return DROP_NO_HEADROOM;
	STEP();
#endif
#if WITH_FRAGMENTS
	if (packet->is_first_fragment && !packet->is_error)
		remember_fragment(packet, choice, vip);
#endif
	if (choice->track)
		track(choice, vip, packet, counters);
	return DROP_NONE;
}

static __always_inline void count(struct vip_counters *counters, const struct packet *packet,
				  const struct choice *choice)
{
	struct backend_counters *of_backend = backend_counts.lookup((u32 *)&choice->id);

	counters->packets++;
	counters->bytes += packet->length;
	if (choice->decision < DECISIONS)
		counters->decisions[choice->decision]++;
	if (choice->is_rehashed && choice->was_quarantined)
		counters->rehashed_quarantined++;
	else if (choice->is_rehashed)
		counters->rehashed_gone++;
	if (of_backend) {
		of_backend->packets++;
		of_backend->bytes += packet->length;
	}
}

/* Counts what is for an address and for no flow of its VIPs, and was answered or dropped. */
static __always_inline int end_at_address(u32 id, int outcome)
{
	struct address_counters *counters = address_counts.lookup(&id);
	u32 reason = outcome;

	if (counters && outcome == ANSWERED)
		counters->answered++;
	else if (counters && reason < REASONS)
		counters->drops[reason]++;
	return outcome == ANSWERED ? XDP_TX : XDP_DROP;
}

/* What no VIP takes, and is for a VIP's address, is ours to answer for: it would circle where the host
 * forwards, since the route to the address leads back to us. */
static __always_inline int answer_for_address(struct xdp_md *ctx, const struct packet *packet)
{
	struct vip *address = find_address(packet);

	if (!address || address->flags & ADDRESS_PASSES || is_own_address(packet))
		return XDP_PASS;
#if WITH_REJECT
	if (address->flags & ADDRESS_REJECTS && reject(ctx, packet))
		return end_at_address(address->id, ANSWERED);
#endif
	return end_at_address(address->id, DROP_UNSERVED);
}

/* The long way. */
static __always_inline int handle(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct vip_counters *counters;
	struct scratch *scratch;
	struct packet *packet;
	int outcome = DROP_NONE;
	struct vip *vip;
	u32 id = 0;

	scratch = scratches.lookup(&id);
	if (!scratch)
		return XDP_PASS;
	__builtin_memset(scratch, 0, sizeof(*scratch));
	packet = &scratch->packet;
	if (!parse(data, end, packet))
		return XDP_PASS;
	STEP();
	vip = find_vip(packet);
	if (!vip)
		return answer_for_address(ctx, packet);
	id = vip->id;

	if (packet->is_cut || packet->length < packet->l4 + packet->headers) {
		outcome = DROP_BAD_LENGTH;
	} else if (packet->is_v6 && is_mapped(packet->source)) {
		outcome = DROP_BAD_SOURCE;
	} else if (packet->kind == KIND_ICMP) {
		outcome = handle_icmp(ctx, &vip, packet);
	}
	STEP();
	if (outcome == NOT_OURS)
		return XDP_PASS;
#if WITH_EVENTS
	if (outcome > DROP_NONE)
		scratch->choice.hash = flow_hash(packet, vip); /* is the flow sampled? */
#endif
#if WITH_PREFIXES
	/* It comes from one of two maps; the verifier would check all that follows for each. */
	if (vip) {
		scratch->vip = *vip;
		vip = &scratch->vip;
	}
#endif
	if (vip)
		id = vip->id;
	counters = vip_counts.lookup(&id);
	if (!counters)
		return XDP_DROP; /* ids are within the map; the verifier does not know */
	if (vip && outcome == DROP_NONE)
		outcome = forward(ctx, vip, scratch, counters);
	/* It has no port: the first fragment may have been for one that no VIP takes, and passed. */
	if (outcome == DROP_FRAGMENT && packet->kind == KIND_LATER_FRAGMENT && vip &&
	    vip->flags & ADDRESS_PASSES)
		return XDP_PASS;
#if WITH_EVENTS
	STEP();
	if (vip && outcome >= DROP_NONE)
		report(packet, &scratch->choice, vip, outcome);
#endif
	if (scratch->choice.vip) { /* a later fragment was found by its address alone */
		id = scratch->choice.vip;
		counters = vip_counts.lookup(&id);
		if (!counters)
			return XDP_DROP;
	} else if (vip && vip->flags & ADDRESS_ENTRY) {
		return end_at_address(id, outcome);
	}
	if (outcome == ANSWERED) {
		counters->answered++;
		return XDP_TX;
	}
	if (outcome) {
		u32 reason = outcome;

		if (reason < REASONS)
			counters->drops[reason]++;
		return XDP_DROP;
	}
	count(counters, packet, &scratch->choice);
	return XDP_TX;
}

int balancer(struct xdp_md *ctx)
{
	int way = short_way(ctx);
	u32 verdict = way == LONG_WAY ? handle(ctx) : way;
	u64 *total = verdict_counts.lookup(&verdict);

	if (total)
		(*total)++;
	return verdict;
}
