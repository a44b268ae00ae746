// SPDX-License-Identifier: GPL-2.0-only
/* A wall clock for one process, which a test steps: see wall_clock.py.
 *
 * Preloaded, this adds an offset to what the C library says of the wall clock. The offset is the
 * first 8 bytes of a file that is mapped, so a step is there at once and for all threads. All other
 * clocks, and everything that sleeps or waits, are the C library's own: a step by NTP does not touch
 * them either.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t *offset; /* s; null until the file is mapped */

__attribute__((constructor)) static void map_offset(void)
{
	const char *path = getenv("WALL_CLOCK_OFFSET");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;

	if (fd < 0)
		return;
	void *mapped = mmap(NULL, sizeof(*offset), PROT_READ, MAP_SHARED, fd, 0);
	if (mapped != MAP_FAILED)
		offset = mapped;
	close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	if (syscall(SYS_clock_gettime, clock, now))
		return -1;
	if (offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += __atomic_load_n(offset, __ATOMIC_RELAXED);
	return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec precise;

	(void)zone; /* obsolete: nobody asks for it */
	if (clock_gettime(CLOCK_REALTIME, &precise))
		return -1;
	now->tv_sec = precise.tv_sec;
	now->tv_usec = precise.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *also)
{
	struct timespec now;

	if (clock_gettime(CLOCK_REALTIME, &now))
		return -1;
	if (also)
		*also = now.tv_sec;
	return now.tv_sec;
}

int timespec_get(struct timespec *now, int base)
{
	return base == TIME_UTC && !clock_gettime(CLOCK_REALTIME, now) ? base : 0;
}
