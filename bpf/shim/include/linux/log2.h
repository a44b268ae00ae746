/* SPDX-License-Identifier: GPL-2.0-only */
/* Included by bcc, not needed by our programs. */
#pragma once
