/* SPDX-License-Identifier: GPL-2.0-only */
/* Fragments: the first has the ports and chooses; the later ones follow it (RFC 791, RFC 8200
 * section 4.5). A later fragment that overtakes the first one is dropped, and counted. */
#pragma once

/* Datagrams are put together within a minute or never (RFC 8200); ids come round again after. */
#define REASSEMBLY_SECONDS 60

static __always_inline void remember_fragment(const struct packet *packet,
					      struct choice *choice, const struct vip *vip)
{
	u64 key = fragment_key(packet), owner = owner_of(key, choice->id, choice->incarnation);
	u32 tick = tick_now(), state = state_of(tick, vip->id, 0), place;
	struct line *line;
	struct pair pair;
	bool is_there;
	u32 number;

	if (!fragment_pair(&pair, key))
		return;
	is_there = find_in(&choice->found, &pair, key);
	STEP();
	if (is_there) {
		number = choice->found.line;
		line = fragments.lookup(&number);
		if (line)
			put(line, choice->found.at, owner, state);
		return;
	}
	place = room_in(&pair, tick, vip->id);
	if (place < PLACES)
		put_at(&pair, place, owner, state);
}

static __always_inline int follow_fragment(struct choice *choice, const struct packet *packet)
{
	u64 key = fragment_key(packet);
	const struct found *found = &choice->found;
	struct pair pair;

	if (!fragment_pair(&pair, key) || !find_in(&choice->found, &pair, key))
		return DROP_FRAGMENT;
	STEP();
	if (age_of(found->state, tick_now()) > ticks_of(REASSEMBLY_SECONDS))
		return DROP_FRAGMENT;
	if (!choose(choice, backend_of(found->owner), incarnation_of(found->owner), BY_FRAGMENT))
		return DROP_FRAGMENT;
	choice->vip = vip_of(found->state);
	return is_denied(choice->vip, packet->source) ? DROP_DENIED : DROP_NONE;
}
