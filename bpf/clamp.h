/* SPDX-License-Identifier: GPL-2.0-only */
/* Lowers the MSS that a SYN offers (RFC 9293 section 3.7.1), with the checksum updated. */
#pragma once

#define TCP_OPTION_END 0
#define TCP_OPTION_NOP 1
#define TCP_OPTION_MSS 2
#define TCP_OPTIONS_MAX 10 /* looked at; senders put the MSS first */

static __always_inline void clamp_mss(void *data, void *end, const struct packet *packet, u16 limit)
{
	struct tcphdr *tcp = l4_of(data, packet);
	u32 at = sizeof(*tcp), options_end;

	if ((void *)(tcp + 1) > end)
		return;
	options_end = tcp->doff * 4;
	for (int i = 0; i < TCP_OPTIONS_MAX; i++) {
		u8 *option;
		u16 mss, before, after;

		/* The same range in every turn, for the verifier; an option ends within 60 bytes. */
		if (at >= 60)
			return;
		asm volatile("" : "+r"(at));
		at &= 63;
		option = (u8 *)tcp + at;
		if (at + 2 > options_end || (void *)(option + 2) > end || option[0] == TCP_OPTION_END)
			return;
		if (option[0] == TCP_OPTION_NOP) {
			at++;
			continue;
		}
		if (option[0] != TCP_OPTION_MSS) {
			if (option[1] < 2)
				return;
			at += option[1];
			continue;
		}
		if (option[1] != 4 || at + 4 > options_end || (void *)(option + 4) > end)
			return;
		mss = option[2] << 8 | option[3];
		if (mss <= limit)
			return;
		/* The option may begin at an odd byte; then it spans words with its bytes swapped. */
		before = at & 1 ? mss : bpf_htons(mss);
		after = at & 1 ? limit : bpf_htons(limit);
		option[2] = limit >> 8;
		option[3] = limit & 0xff;
		tcp->check = updated(tcp->check, before, after);
		return;
	}
}
