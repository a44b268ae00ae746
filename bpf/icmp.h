/* SPDX-License-Identifier: GPL-2.0-only */
/* ICMP and ICMPv6: one header, and the types that matter here (RFC 792, RFC 4443). The UAPI's own
 * header drags in the C library's sockets, which BPF has no use for. */
#pragma once

struct icmphdr {
	u8 type;
	u8 code;
	u16 checksum;
	u32 rest; /* of fragmentation needed: MTU in the lower half; of packet too big: MTU */
};

#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMP_PORT_UNREACH 3 /* codes of unreachable */
#define ICMP_FRAG_NEEDED 4

#define ICMPV6_DEST_UNREACH 1
#define ICMPV6_PORT_UNREACH 4 /* code of unreachable */
#define ICMPV6_PKT_TOOBIG 2
#define ICMPV6_PARAMPROB 4
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129
