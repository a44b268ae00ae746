/* SPDX-License-Identifier: GPL-2.0-only */
/* The Ethernet header of what is transmitted: EtherType and the VLAN tags that the packet came
 * with. The addresses are for the caller to write. */
#pragma once

/* Bytes of the frame. The barrier keeps clang from folding the difference of the two pointers into
 * what is computed with it, which the verifier refuses. */
static __always_inline int frame_length(struct xdp_md *ctx)
{
	u64 length = (u64)ctx->data_end - (u64)ctx->data;

	asm volatile("" : "+r"(length));
	return (int)length;
}

/* True if a frame is for this interface, and not for a group or everybody. An interface that the
 * agent has not written yet has no addresses to compare with. */
static __always_inline bool is_ours(const struct ethhdr *eth, const struct link *link)
{
	u64 to = (u64)*(u16 *)&eth->h_dest[4] << 32 | *(u32 *)eth->h_dest;

	if (!link)
		return true;
	if (to & 1)
		return false;
#pragma unroll
	for (int i = 0; i < OWN_MACS; i++)
		if (to == link->own[i])
			return true;
	return link->takes_any;
}

static __always_inline void write_macs(void *eth, const struct macs *macs)
{
	u32 *words = eth;

	words[0] = macs->words[0];
	words[1] = macs->words[1];
	words[2] = macs->words[2];
}

/* Returns where the IP header begins, or NULL if the frame is too short. */
static __always_inline void *write_ethernet(void *data, void *end, const struct packet *packet,
					    u16 ethertype)
{
	struct ethhdr *eth = data;
	struct vlan_tag *tag = (void *)(eth + 1);

	if ((void *)(eth + 1) > end)
		return NULL;
	if (packet->l3 == sizeof(*eth)) {
		eth->h_proto = ethertype;
		return eth + 1;
	}
	if ((void *)(tag + 1) > end)
		return NULL;
	eth->h_proto = packet->types[0];
	tag->tci = packet->tags[0];
	if (packet->l3 == sizeof(*eth) + sizeof(*tag)) {
		tag->next = ethertype;
		return tag + 1;
	}
	tag->next = packet->types[1];
	tag++;
	if ((void *)(tag + 1) > end)
		return NULL;
	tag->tci = packet->tags[1];
	tag->next = ethertype;
	return tag + 1;
}
