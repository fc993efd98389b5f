/* Slewing changes the length of a tick (USER_HZ, 10,000 us), within the kernel's +-10 %; the 500 ppm of NTP would take half an
 * hour for a second. A timer ends it. That timer runs on CLOCK_MONOTONIC, which is slewed too: gaining `offset` at rate r takes
 * offset * (1 + r) / r of it. The rate is such that it lasts about a second, so that a timer that fires late by a few
 * milliseconds spoils little. Where the machine is busy it fires late by more: what was gained too much then is given back as any
 * other lead is, by a slew that is so much slower that its own lateness counts for little. */
#include "clock.h"

#include <sys/timex.h>
#include <time.h>

#include "event.h"

#define TICK_US 10000
#define TICK_CHANGE_US_MAX 1000
#define STEP_NS 1000000000
#define IGNORED_NS 20000

static int64_t rate_us; /* change of the tick now */
static uint64_t end_ns; /* when the slew has gained all that it is for; its timer fires then or later */

static void set_tick(int64_t change_us) {
    struct timex request = {.modes = ADJ_TICK, .tick = TICK_US + change_us};
    adjtimex(&request);
    rate_us = change_us;
}

static void end_slew(struct timer *timer) {
    (void)timer;
    clock_adjust(clock_slewing_ns());
}

static struct timer slew_timer = {.fire = end_slew};

void clock_step_to(uint64_t target_ns) {
    struct timespec target = {.tv_sec = (time_t)(target_ns / 1000000000u), .tv_nsec = (long)(target_ns % 1000000000u)};
    timer_off(&slew_timer);
    set_tick(0);
    clock_settime(CLOCK_REALTIME, &target);
}

void clock_adjust(int64_t offset_ns) {
    if (offset_ns > STEP_NS) {
        clock_step_to(realtime_ns() + (uint64_t)offset_ns);
        return;
    }
    int64_t distance_ns = offset_ns < 0 ? -offset_ns : offset_ns;
    timer_off(&slew_timer);
    set_tick(0);
    if (distance_ns < IGNORED_NS)
        return;
    int64_t change_us = distance_ns / (STEP_NS / TICK_US) + 1;
    if (change_us > TICK_CHANGE_US_MAX)
        change_us = TICK_CHANGE_US_MAX;
    if (offset_ns < 0)
        change_us = -change_us;
    set_tick(change_us);
    uint64_t lasts_ns = (uint64_t)((double)distance_ns * (double)(TICK_US + change_us) / (double)(change_us < 0 ? -change_us : change_us));
    end_ns = monotonic_ns() + lasts_ns;
    timer_set(&slew_timer, lasts_ns);
}

int64_t clock_slewing_ns(void) {
    if (rate_us == 0)
        return 0;
    double left_ns = (double)end_ns - (double)monotonic_ns();
    return (int64_t)(left_ns * (double)rate_us / (double)(TICK_US + rate_us));
}
