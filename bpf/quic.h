/* SPDX-License-Identifier: GPL-2.0-only */
/* QUIC: the server wrote its id into the connection id, so a connection is found whatever address
 * the client has now (draft-ietf-quic-load-balancers, plaintext; RFC 8999 for what never changes).
 *
 * The client chose the connection id of Initial and 0-RTT packets itself: those go by the table. */
#pragma once

#define QUIC_LONG 0x80
#define QUIC_FIXED 0x40
#define QUIC_TYPE(byte) (((byte) >> 4) & 3)
#define QUIC_V2 bpf_htonl(0x6b3343cf) /* RFC 9369: types are counted from Retry */
#define QUIC_ID_BYTES 15
#define QUIC_LONG_CID 6 /* first byte, version, length of the connection id */

/* True if the packet carries a server id, which is then in the key. */
static __always_inline bool read_server_id(struct quic_key *key, void *payload, void *end,
					   const struct vip *vip)
{
	u8 *first = payload;
	u8 *id;

	if ((void *)(first + 1) > end || !(*first & QUIC_FIXED))
		return false;
	if (*first & QUIC_LONG) {
		u32 version, type;

		if ((void *)(first + QUIC_LONG_CID) > end)
			return false;
		__builtin_memcpy(&version, first + 1, sizeof(version));
		type = QUIC_TYPE(*first);
		if (version == QUIC_V2)
			type = (type + 3) & 3;
		if (!version || type < 2) /* Initial, 0-RTT */
			return false;
		if (first[5] < vip->quic_offset + vip->quic_length)
			return false;
		id = first + QUIC_LONG_CID;
	} else {
		id = first + 1;
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
	return server && choose(choice, server->backend,
				server->backend_incarnation & INCARNATION_MASK, BY_QUIC);
}
