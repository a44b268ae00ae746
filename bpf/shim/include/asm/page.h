/* SPDX-License-Identifier: GPL-2.0-only */
#pragma once
#define PAGE_SIZE 4096UL
