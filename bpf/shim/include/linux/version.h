/* SPDX-License-Identifier: GPL-2.0-only */
/* bcc wants a version; programs of XDP and tc type do not depend on it. */
#pragma once
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(6, 1, 0)
