/* SPDX-License-Identifier: GPL-2.0-only */
/* Marks of SYNs: where a new flow went, until what follows its SYN makes an entry.
 *
 * They are few, and whoever sends SYNs makes them. So one whose handshake may be under way is not
 * overwritten where that can be helped, and a source prefix has a share of them. */
#pragma once

/* Bits of a source prefix whose marks have a limit: the most that one site has (RFC 6177). */
#define MARK_PREFIX4 24
#define MARK_PREFIX6 48

static __always_inline bool find_mark(struct choice *choice)
{
	struct pair pair;
	bool is_there = mark_pair(&pair, choice->key) && find_in(&choice->mark, &pair, choice->key);

	STEP();
	return is_there;
}

/* There is no room for a mark: the flow goes to the owner from before the window, where what follows
 * its SYN goes without one. */
static __always_inline bool step_back(struct choice *choice)
{
	u32 id = choice->fallback & OWNER;
	struct backend *backend = usable(id, ANY_INCARNATION);

	if (!(choice->fallback & IN_WINDOW) || choice->had_entry || !backend ||
	    backend->flags & BACKEND_DRAINING || backend->pool != choice->pool)
		return false;
	choice->is_rehashed = false;
	return choose(choice, id, ANY_INCARNATION, BY_SYN);
}

/* False if the client's prefix has left its share of marks. */
static __always_inline bool mark_is_within_limit(struct choice *choice, const struct packet *packet)
{
	u64 hash = prefix_hash(choice->prefix, packet, MARK_PREFIX4, MARK_PREFIX6, 0);
	u32 cell = cell_of(hash), other_cell = other_cell_of(hash);
	u64 *one = mark_limits.lookup(&cell), *other = mark_limits.lookup(&other_cell);

	return one && other && take_of_two(one, other, MARK_RATE, bpf_jiffies64());
}

/* Finds the place for a mark that is not there yet; false if the flow needs none, or its prefix is
 * above its limit and no place is to spare: then nobody's handshake is split but one of its own. */
static __always_inline bool find_room(struct choice *choice, const struct packet *packet, u32 moment)
{
	struct found *mark = &choice->mark;
	struct pair pair;

	choice->is_over_limit = !mark_is_within_limit(choice, packet);
	STEP();
	if (!mark_pair(&pair, choice->key))
		return false;
	mark->line = pair.first;
	mark->at = place_for_mark(&pair, moment, choice->is_over_limit ? SPARE_PLACES : 1);
	STEP();
	if (mark->at >= PLACES) {
		if (step_back(choice) || choice->is_over_limit)
			return false;
		mark->at = (choice->key & 0xffff) * PLACES >> 16; /* by lot */
	}
	STEP();
	if (mark->at >= LINE_ENTRIES) {
		mark->at -= LINE_ENTRIES;
		mark->line ^= 1;
	}
	return true;
}

/* Leaves a mark of a new flow, so that what follows its SYN, or the SYN again, finds its backend. */
static __always_inline void mark(struct choice *choice, const struct packet *packet)
{
	u32 moment = moment_now(), number;
	bool is_wanted = find_mark(choice) || find_room(choice, packet, moment);
	struct line *line;

	STEP();
	if (is_wanted) {
		number = choice->mark.line;
		line = syns.lookup(&number);
		if (line)
			put_mark(line, choice->mark.at,
				 owner_of(choice->key, choice->id, choice->incarnation),
				 packet->sequence, moment);
	}
	STEP();
	if (is_wanted && choice->had_entry && find_flow(choice))
		put_state(&choice->found, choice->found.state | FLOW_CONTESTED);
}
