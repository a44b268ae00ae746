/* SPDX-License-Identifier: GPL-2.0-only */
/* The packet path of a Tidegate load balancer, top to bottom:
 *
 *   parse.h        frame -> packet, or not ours
 *   vip look-up    -> is it for us at all
 *   select.h       connection table, SYN table, Maglev table -> backend
 *   encapsulate.h  IP in IP, transmit to the gateway
 *
 * What is not for a VIP passes to the host's stack untouched. What is, leaves encapsulated or is
 * dropped with a reason that is counted. The agent compiles this with the build constants
 * TABLE_SIZE, HASH_KEY*, SOURCE4* and SOURCE6*. */
#include <uapi/linux/bpf.h>
#include "enums.h"
#include "layout.h"
#include "maps.h"
#include "hash.h"
#include "parse.h"
#include "select.h"
#include "encapsulate.h"

static __always_inline int forward(struct xdp_md *ctx, struct vip *vip, const struct packet *packet,
				   struct choice *choice)
{
	struct flow_key key = {
		.source = { packet->source[0], packet->source[1], packet->source[2],
			    packet->source[3] },
		.vip = vip->id,
		.source_port = packet->source_port,
		.port = packet->destination.port,
	};
	int reason;

	if (packet->is_cut || packet->length < packet->headers)
		return DROP_BAD_LENGTH;
	if (packet->is_fragment)
		return DROP_FRAGMENT;
	reason = select_backend(choice, vip, packet, &key);
	if (reason)
		return reason;
	reason = encapsulate(ctx, packet, choice);
	if (reason)
		return reason;
	track(choice, vip, &key);
	return DROP_NONE;
}

static __always_inline void count(const struct vip *vip, const struct packet *packet,
				  const struct choice *choice)
{
	struct vip_counters *of_vip = vip_counts.lookup((u32 *)&vip->id);
	struct backend_counters *of_backend = backend_counts.lookup((u32 *)&choice->id);

	if (of_vip) {
		of_vip->packets++;
		of_vip->bytes += packet->length;
		if (choice->decision < DECISIONS)
			of_vip->decisions[choice->decision]++;
		of_vip->rehashed += choice->rehashed;
	}
	if (of_backend) {
		of_backend->packets++;
		of_backend->bytes += packet->length;
	}
}

int balancer(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct packet packet = {};
	struct choice choice = {};
	struct vip *vip;
	u32 reason;

	if (!parse(data, end, &packet))
		return XDP_PASS;
	vip = vips.lookup(&packet.destination);
	if (!vip)
		return XDP_PASS;

	reason = forward(ctx, vip, &packet, &choice);
	if (reason) {
		u64 *drops = drop_counts.lookup(&reason);

		if (drops)
			(*drops)++;
		return XDP_DROP;
	}
	count(vip, &packet, &choice);
	return XDP_TX;
}
