/* SPDX-License-Identifier: GPL-2.0-only */
/* Events of sampled flows, written to a ring buffer.
 *
 * A flow is sampled by its hash, so either all of its events are written or none, and every host of
 * a fleet samples the same flows. A packet's events are written after its last step, from what the
 * steps found out. A program whose VIPs sample no flows is compiled without this file. */
#pragma once

#if WITH_EVENTS
#define EVENT_RATE 10000 /* per second and CPU */
#define FLOOD_RATE 1 /* per second, VIP and CPU */
#define SAMPLED_BITS 0xffff
#define KIND_BIT(kind) (1U << (kind))

static __always_inline u32 kinds_of(const struct packet *packet, const struct choice *choice,
				    int outcome)
{
	bool is_elsewhere = choice->had_entry && choice->decision != BY_TRACKED;
	u32 kinds = 0;

	if (outcome != DROP_NONE)
		return KIND_BIT(EVENT_DROPPED);
	if (packet->is_error)
		return 0; /* not a packet of its flow */
	if (packet->is_syn)
		kinds |= KIND_BIT(EVENT_NEW);
	else if (is_elsewhere)
		kinds |= KIND_BIT(EVENT_MOVED);
	else if (choice->decision == BY_DATAGRAM && choice->track)
		kinds |= KIND_BIT(EVENT_NEW);
	if (choice->is_promoted)
		kinds |= KIND_BIT(EVENT_PROMOTED);
	if (packet->is_fin)
		kinds |= KIND_BIT(EVENT_FINISHED);
	if (packet->is_rst)
		kinds |= KIND_BIT(EVENT_RESET);
	if (choice->is_refused)
		kinds |= KIND_BIT(EVENT_FLOOD);
	return kinds;
}

static __always_inline void fill_event(struct event *event, const struct packet *packet,
				       const struct choice *choice, const struct vip *vip,
				       int outcome)
{
	bool is_chosen = choice->id;

	event->time = bpf_ktime_get_ns();
	event->generation = is_chosen ? choice->generation : 0;
	event->vip = vip->id;
	event->vip_incarnation = vip->incarnation;
	event->backend = choice->id;
	event->backend_incarnation = choice->incarnation;
	event->slot = slot_of(choice->hash);
	event->decision = is_chosen ? choice->decision : 0;
	event->reason = outcome;
	event->protocol = packet->destination.protocol;
	__builtin_memcpy(event->source, packet->source, sizeof(event->source));
	__builtin_memcpy(event->destination, packet->destination.address,
			 sizeof(event->destination));
	event->source_port = packet->source_port;
	event->port = packet->destination.port;
}

static __always_inline void report(const struct packet *packet, const struct choice *choice,
				   const struct vip *vip, int outcome)
{
	struct event_counters *counters;
	struct bucket *limit, *floods;
	u64 now = bpf_jiffies64();
	u32 zero = 0, id, kinds;
	struct event *event;

	if (!vip->sampling)
		return;
	kinds = kinds_of(packet, choice, outcome);
	if ((choice->hash & SAMPLED_BITS) >= vip->sampling)
		kinds &= KIND_BIT(EVENT_FLOOD); /* a flood is an event of the VIP, not of a flow */
	if (!kinds)
		return;
	id = vip->id;
	event = event_space.lookup(&zero);
	counters = event_counts.lookup(&zero);
	limit = event_limits.lookup(&zero);
	floods = event_limits.lookup(&id);
	if (!event || !counters || !limit || !floods)
		return;
	fill_event(event, packet, choice, vip, outcome);
	for (u32 kind = 0; kind < EVENT_KINDS; kind++) {
		if (!(kinds & KIND_BIT(kind)))
			continue;
		if (kind == EVENT_FLOOD && !take(floods, FLOOD_RATE, now))
			continue;
		event->kind = kind;
		if ((kind != EVENT_FLOOD && !take(limit, EVENT_RATE, now)) ||
		    events.ringbuf_output(event, sizeof(*event), 0))
			counters->lost++;
		else
			counters->sent++;
	}
}
#endif
