/* SPDX-License-Identifier: GPL-2.0-only */
/* QUIC: the server wrote its id into the connection id, so a connection is found whatever address
 * the client has now (draft-ietf-quic-load-balancers, plaintext; RFC 8999 for what never changes).
 *
 * The fixed bit is not looked at, since it may be greased (RFC 9287), and neither is the packet's type:
 * an id that the client chose names no server but by chance. */
#pragma once

#define QUIC_LONG 0x80
#define QUIC_ID_BYTES 15
#define QUIC_LONG_CID 6 /* first byte, version, length of the connection id */
#define QUIC_CONFIG(byte) ((byte) >> 5)
#define QUIC_UNROUTABLE 7 /* config rotation bits that no load balancer has a configuration for */

/* True if the packet carries a server id, which is then in the key. */
static __always_inline bool read_server_id(struct quic_key *key, void *payload, void *end,
					   const struct vip *vip)
{
	u8 *first = payload;
	u8 *id;

	if ((void *)(first + 1) > end)
		return false;
	if (*first & QUIC_LONG) {
		u32 version;

		if ((void *)(first + QUIC_LONG_CID) > end)
			return false;
		__builtin_memcpy(&version, first + 1, sizeof(version));
		if (!version || first[5] < vip->quic_offset + vip->quic_length)
			return false;
		id = first + QUIC_LONG_CID;
	} else {
		id = first + 1;
	}
	if (vip->quic_offset) {
		if ((void *)(id + 1) > end || QUIC_CONFIG(*id) == QUIC_UNROUTABLE)
			return false;
	}
	id += vip->quic_offset & 15;
	key->length = vip->quic_length;
	for (int i = 0; i < QUIC_ID_BYTES; i++) {
		if (i >= vip->quic_length)
			break;
		if ((void *)(id + i + 1) > end)
			return false;
		key->id[i] = id[i];
	}
	return true;
}

static __always_inline bool choose_quic(struct choice *choice, void *data, void *end,
					const struct vip *vip, const struct packet *packet)
{
	void *payload = l4_of(data, packet) + sizeof(struct udphdr);
	struct quic_key key = { .pool = choice->pool };
	struct quic_server *server;

	if (!read_server_id(&key, payload, end, vip))
		return false;
	server = quic_servers.lookup(&key);
	if (!server || !choose(choice, server->backend,
			       server->backend_incarnation & INCARNATION_MASK, BY_QUIC))
		return false;
	/* What comes later on these ports and has no server id still follows the flow's entry. */
	if (is_tracking(vip) && has_entry(choice, vip, packet))
		follow(&choice->found, vip, packet, tick_now());
	return true;
}
