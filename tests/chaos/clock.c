/* A clock that can be set for some processes: the time of day, moved by what a file says.
 *
 * Loaded before libc (LD_PRELOAD). CHAOS_CLOCK names a file of one signed 64-bit number of
 * nanoseconds, mapped into every process that it is named to: a jump reaches all of them at once.
 * Moved are clock_gettime (REALTIME), gettimeofday, time, and what abseil waits for by the time of
 * day (gRPC does); the monotonic clock and the times of files are the machine's own.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t zero = 0;
static const volatile int64_t *moved = &zero;

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("CHAOS_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *found = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
  if (found != MAP_FAILED) moved = found;
  close(file);
}

static void move(struct timespec *at, int64_t by) {
  int64_t nanos = at->tv_nsec + by % 1000000000;
  at->tv_sec += by / 1000000000;
  if (nanos < 0) { nanos += 1000000000; at->tv_sec -= 1; }
  if (nanos >= 1000000000) { nanos -= 1000000000; at->tv_sec += 1; }
  at->tv_nsec = nanos;
}

int clock_gettime(clockid_t which, struct timespec *at) {
  int code = syscall(SYS_clock_gettime, which, at);
  if (!code && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) move(at, *moved);
  return code;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
  struct timespec found;
  (void)zone;
  if (clock_gettime(CLOCK_REALTIME, &found)) return -1;
  at->tv_sec = found.tv_sec;
  at->tv_usec = found.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *at) {
  struct timespec found;
  if (clock_gettime(CLOCK_REALTIME, &found)) return -1;
  if (at) *at = found.tv_sec;
  return found.tv_sec;
}

/* Called by this file too: the real one is found on first use. */
long syscall(long number, ...) {
  static long (*real)(long, ...);
  long a[6];
  va_list list;
  va_start(list, number);
  for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
  va_end(list);
  if (!real) real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
  if (number == SYS_futex && (a[1] & FUTEX_CLOCK_REALTIME) && a[3] && *moved) {
    struct timespec until = *(const struct timespec *)a[3];
    move(&until, -*moved);
    if (until.tv_sec < 0) until.tv_sec = until.tv_nsec = 0;
    return real(number, a[0], a[1], a[2], (long)&until, a[4], a[5]);
  }
  return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
