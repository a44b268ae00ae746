/* SPDX-License-Identifier: GPL-2.0-only */
/* Which backend a packet goes to.
 *
 * A flow stays where it is because of three facts. A tracked flow is found in the connection table,
 * whatever the Maglev table says. A flow whose SYN came to a slot in transition left a mark with the
 * backend that the SYN went to, until its first ACK tracks it. So an untracked packet that is not a
 * SYN belongs to a flow from before the window, whose owner is the slot's fallback, however often
 * the slot changed since. A mark has its SYN's sequence number, and counts for what continues from
 * there alone: nobody else's SYN moves a flow.
 *
 * A SYN looks for an entry or its mark only where one could name another backend than the slot's
 * owner: in slots that have changed, for VIPs that had other pools, and where the owner is out. Then
 * others stand in for it, drawn by re-hashing. Whom they are depends on who else is out, so what goes
 * to one leaves a mark or an entry in every mode, and is found by it from then on: as long as the
 * owner is out in any slot, and afterwards because the slot then counts as one that has changed.
 *
 * With tracking `transition` this holds with far fewer entries: a slot that never was in transition
 * has no tracked flow, so its packets need no look-up; and all that is seen in a window is tracked,
 * so whoever sends at least once in it stays when it closes. */
#pragma once

/* Look-ups after an unusable owner; with half of all slots unusable one packet in 2^16 finds none. */
#define REHASHES 16
#define STAND_IN_SHIFT 60 /* the upper bits of a hash draw one of STAND_INS */
/* The most that a client may send on a SYN-ACK: its window is not scaled (RFC 7323 section 2.2). */
#define HANDSHAKE_BYTES 0xffff
/* An ending flow that speaks again after so many ticks is another one on the same ports. */
#define SILENCE_TICKS 2

/* A reset ends its flow, so it is not worth an entry; an error is not a packet of its flow. */
static __always_inline bool is_worth_an_entry(const struct packet *packet)
{
	return !packet->is_rst && !packet->is_error;
}

/* Chooses the backend of the SYN that this packet follows, or is again. An error has no number. */
static __always_inline bool choose_marked(struct choice *choice, const struct packet *packet)
{
	const struct found *mark = &choice->mark;
	u32 ahead;

	if (!find_mark(choice))
		return false;
	ahead = packet->sequence - mark->state;
	if (packet->is_syn ? ahead : !packet->is_error && ahead - 1 > HANDSHAKE_BYTES)
		return false;
	choice->continues = true;
	if (!choose(choice, backend_of(mark->owner), incarnation_of(mark->owner),
		    packet->is_syn ? BY_SYN : BY_FRESH))
		return false;
	choice->generation = 0;
	choice->had_entry = false; /* it is another flow than that of the entry */
	choice->track = !packet->is_syn && is_worth_an_entry(packet);
	return true;
}

/* Notes in the flow's entry that a packet of it was forwarded; and whose it is, in case that two CPUs
 * wrote two entries into one place. */
static __always_inline void follow(const struct found *found, const struct vip *vip,
				   const struct packet *packet, u32 tick)
{
	u32 flags = found->state & FLOW_FLAGS & ~FLOW_COPIED, state;

	if (packet->is_fin || packet->is_rst)
		flags |= FLOW_ENDING;
	else if (!(flags & FLOW_ENDING))
		flags |= FLOW_SPOKE;
	else if (age_of(found->state, tick) >= SILENCE_TICKS)
		flags = (flags & ~FLOW_ENDING) | FLOW_SPOKE;
	state = state_of(tick, vip->id, flags);
	if (state != found->state)
		put_state(found, state);
}

/* True if a SYN goes where the flow that is there goes: it lives, and may take new ones. */
static __always_inline bool keeps_backend(const struct found *found, const struct vip *vip, u32 pool)
{
	struct backend *backend = usable(backend_of(found->owner), incarnation_of(found->owner));

	if (!backend || backend->flags & BACKEND_DRAINING || backend->pool != pool ||
	    found->state & FLOW_ENDING)
		return false;
	return !vip->tcp_idle || age_of(found->state, tick_now()) <= ticks_of(vip->tcp_idle);
}

/* True if the flow has an entry; of UDP, one that is not idle for too long. */
static __always_inline bool has_entry(struct choice *choice, const struct vip *vip,
				      const struct packet *packet)
{
	if (!find_flow(choice))
		return false;
#if WITH_UDP
	if (packet->kind == KIND_UDP && vip->idle &&
	    age_of(choice->found.state, tick_now()) > ticks_of(vip->idle))
		return false;
#endif
	return true;
}

/* Chooses the backend of the entry that was found, if the packet may follow it. */
static __always_inline bool choose_tracked(struct choice *choice, const struct vip *vip,
					   const struct packet *packet)
{
	const struct found *found = &choice->found;

	if (packet->is_syn && !keeps_backend(found, vip, choice->pool))
		return false;
	if (!choose(choice, backend_of(found->owner), incarnation_of(found->owner), BY_TRACKED))
		return false;
	if (!packet->is_syn && !packet->is_error)
		follow(found, vip, packet, tick_now());
	return true;
}

static __always_inline struct table *find_table(const struct choice *choice)
{
	u32 pool = choice->pool, first = 0;
	void *blob = outer.lookup(&pool);

	return blob ? bpf_map_lookup_elem(blob, &first) : NULL;
}

/* Who stands in where re-hashing finds nobody: the agent lists backends that serve before it takes others
 * out. An element of the map may be written anew under the reader, so the pool has to be right. */
static __always_inline bool choose_stand_in(struct choice *choice, u64 hash, u8 decision)
{
	u32 pool = choice->pool, chosen = 0;
	struct stand_ins *there = stand_ins.lookup(&pool);

	if (!there)
		return false;
	for (u32 i = 0; i < STAND_INS; i++) {
		u32 id = there->ids[((hash >> STAND_IN_SHIFT) + i) & (STAND_INS - 1)];
		struct backend *backend = usable(id, ANY_INCARNATION);

		if (!chosen && backend && backend->pool == pool)
			chosen = id;
	}
	STEP();
	return choose(choice, chosen, ANY_INCARNATION, decision);
}

/* The owner is unusable: try the owners of slots drawn from the same hash, the same on each host. */
static __always_inline bool choose_rehashed(struct choice *choice, u8 decision)
{
	struct backend *passed_over = backends.lookup(&choice->current);
	struct table *table = find_table(choice);
	u64 hash = choice->hash;

	choice->is_rehashed = true;
	choice->was_quarantined = passed_over && passed_over->incarnation;
	if (!table)
		return false;
	for (int i = 0; i < REHASHES; i++) {
		struct slot *slot;

		hash = hash * 6364136223846793005ULL + 1442695040888963407ULL; /* Knuth's MMIX */
		slot = slot_at(table, slot_of(hash));
		if (slot && choose(choice, slot->current, ANY_INCARNATION, decision))
			return true;
	}
	return choose_stand_in(choice, hash, decision);
}

/* Reads the flow's slot of the pool's table into the choice, if there is a table. */
static __always_inline void read_slot(struct choice *choice, const struct vip *vip)
{
	struct table *table = find_table(choice);
	struct slot *slot;

	choice->slot = slot_of(choice->hash);
	slot = table ? slot_at(table, choice->slot) : NULL;
	if (!slot)
		return;
	choice->has_table = true;
	choice->current = slot->current;
	choice->fallback = slot->fallback;
	choice->table_generation = ((struct table_header *)table->bytes)->generation;
}

static __always_inline bool is_tracking(const struct vip *vip)
{
	return !(vip->flags & VIP_TRACK_NONE);
}

static __always_inline bool is_full(const struct vip *vip)
{
	return !(vip->flags & (VIP_TRACK_NONE | VIP_TRACK_TRANSITION));
}

/* True where an entry or a mark may name another backend than the slot's owner: in a slot that has
 * changed, for a VIP that had other pools, and where the owner is out and others stand in for it. */
static __always_inline bool may_be_elsewhere(const struct choice *choice, const struct vip *vip)
{
	return choice->fallback & MAY_BE_TRACKED || vip->flags & VIP_MOVED ||
	       !usable(choice->current, ANY_INCARNATION);
}

/* Chooses by the connection table and the marks. A mark counts where there is no entry, or for one
 * that it contests. */
static __always_inline bool choose_known(struct choice *choice, const struct vip *vip,
					 const struct packet *packet)
{
	bool is_tcp = packet->kind == KIND_TCP, look_for_mark;

	if (!is_tracking(vip))
		return false;
	choice->look = is_tcp && choice->has_table && may_be_elsewhere(choice, vip);
	if (choice->look || !is_tcp || (is_full(vip) && !packet->is_syn))
		choice->had_entry = has_entry(choice, vip, packet);
	STEP();
	look_for_mark = choice->had_entry ?
				choice->found.state & FLOW_CONTESTED && !packet->is_error :
				choice->look;
	if (look_for_mark && choose_marked(choice, packet))
		return true;
	STEP();
	return choice->had_entry && !choice->continues && choose_tracked(choice, vip, packet);
}

/* Chooses by the table: the slot's fallback for a flow from before its window, or its owner. */
static __always_inline bool choose_owner(struct choice *choice, const struct packet *packet,
					 const struct vip *vip)
{
	bool is_tcp = packet->kind == KIND_TCP;
	u8 decision = !is_tcp ? BY_DATAGRAM : packet->is_syn ? BY_SYN : BY_CURRENT;
	bool in_window = choice->fallback & IN_WINDOW && is_tracking(vip);

	choice->generation = choice->table_generation;
	if (in_window && is_tcp && !packet->is_syn &&
	    choose(choice, choice->fallback & OWNER, ANY_INCARNATION, BY_FALLBACK))
		return true;
	return choose(choice, choice->current, ANY_INCARNATION, decision) ||
	       choose_rehashed(choice, decision);
}

/* Fills the choice, or returns the reason why there is none. */
static __always_inline int select_backend(struct choice *choice, const struct vip *vip,
					  const struct packet *packet)
{
	bool in_window;

	read_slot(choice, vip);
	STEP();
	if (choose_known(choice, vip, packet))
		return DROP_NONE;
	STEP();
	if (!choice->has_table)
		return DROP_NO_TABLE;
	if (!choose_owner(choice, packet, vip))
		return DROP_NO_BACKEND;
	STEP();
	if (!is_tracking(vip))
		return DROP_NONE;

	in_window = choice->fallback & IN_WINDOW;
	/* A flow whose entry or mark names a backend that is out has another one for good. */
	if (!packet->is_syn)
		choice->track = (is_full(vip) || packet->kind != KIND_TCP || in_window ||
				 choice->is_rehashed || choice->had_entry || choice->continues) &&
				is_worth_an_entry(packet);
	/* A SYN never makes an entry: a flood must not evict established flows. */
	else if (in_window || choice->had_entry || choice->is_rehashed)
		mark(choice, packet);
	return DROP_NONE;
}

/* Writes an entry, unless new ones come faster than the VIP allows or nobody has to make room: then
 * they stay untracked, and what is tracked already is not evicted. */
static __always_inline void track(struct choice *choice, const struct vip *vip,
				  const struct packet *packet, struct vip_counters *counters)
{
	u32 id = vip->id, tick = tick_now(), place = 0, state;
	u64 owner = owner_of(choice->key, choice->id, choice->incarnation);
	struct bucket *budget = insert_limits.lookup(&id);
	struct pair pair;

	state = state_of(tick, id,
			 (packet->is_fin ? FLOW_ENDING : 0) | (choice->continues ? FLOW_SPOKE : 0));
	if (!budget || !take(budget, vip->insert_rate, bpf_jiffies64())) {
		place = PLACES;
	} else if (find_flow(choice)) {
		put_flow(&choice->found, owner, state);
	} else if (flow_pair(&pair, choice->key)) {
		place = room_in(&pair, tick, id);
		if (place < PLACES)
			put_at(&pair, place, owner, state);
	}
	if (place >= PLACES) {
		counters->untracked++;
		choice->is_refused = true;
		return;
	}
	counters->tracked++;
	choice->is_promoted = true;
}
