/* SPDX-License-Identifier: GPL-2.0-only */
/* Generated from agent/tidegate/model/decision.py, where each has its meaning.
 * Renew with: python -m tidegate.dataplane.kernel.enums > bpf/enums.h */
#pragma once

enum {
	BY_TRACKED = 0,
	BY_SYN = 1,
	BY_FRESH = 2,
	BY_FALLBACK = 3,
	BY_CURRENT = 4,
	BY_DATAGRAM = 5,
	BY_QUIC = 6,
	BY_FRAGMENT = 7,
	BY_ERROR = 8,
	DECISIONS = 9,
};

enum {
	DROP_NONE = 0,
	DROP_BAD_LENGTH = 1,
	DROP_FRAGMENT = 2,
	DROP_NO_TABLE = 3,
	DROP_NO_BACKEND = 4,
	DROP_NO_GATEWAY = 5,
	DROP_TOO_BIG = 6,
	DROP_NO_HEADROOM = 7,
	DROP_DENIED = 8,
	DROP_SYN_LIMIT = 9,
	DROP_ICMP_UNKNOWN = 10,
	DROP_ICMP_MTU = 11,
	DROP_ECHO_LIMIT = 12,
	DROP_BAD_SOURCE = 13,
	DROP_UNSERVED = 14,
	DROP_MERGED = 15,
	DROP_ICMP_LIMIT = 16,
	REASONS = 17,
};

enum {
	EVENT_NEW = 0,
	EVENT_MOVED = 1,
	EVENT_PROMOTED = 2,
	EVENT_FINISHED = 3,
	EVENT_RESET = 4,
	EVENT_DROPPED = 5,
	EVENT_FLOOD = 6,
	EVENT_KINDS = 7,
};
