#include "event.h"

#include <errno.h>
#include <stddef.h>
#include <time.h>
#include <unistd.h>

static int epoll_fd = -1;
static struct timer *timers;

static uint64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t monotonic_ns(void) {
    return clock_ns(CLOCK_MONOTONIC);
}

uint64_t realtime_ns(void) {
    return clock_ns(CLOCK_REALTIME);
}

void event_open(void) {
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
}

void event_watch(struct event_source *source, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = source};
    epoll_ctl(epoll_fd, source->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, source->fd, &event);
    source->watched = true;
}

void event_unwatch(struct event_source *source) {
    if (source->watched)
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
    source->watched = false;
}

void event_close(struct event_source *source) {
    event_unwatch(source);
    if (source->fd >= 0)
        close(source->fd);
    source->fd = -1;
}

void timer_set(struct timer *timer, uint64_t delay_ns) {
    timer->deadline_ns = monotonic_ns() + delay_ns;
    if (!timer->listed) {
        timer->listed = true;
        timer->next = timers;
        timers = timer;
    }
}

void timer_off(struct timer *timer) {
    timer->deadline_ns = 0;
    for (struct timer **link = &timers; *link != NULL; link = &(*link)->next)
        if (*link == timer) {
            *link = timer->next;
            timer->listed = false;
            return;
        }
}

static int milliseconds_to_next_timer(void) {
    uint64_t now = monotonic_ns(), first = UINT64_MAX;
    for (struct timer *timer = timers; timer != NULL; timer = timer->next)
        if (timer->deadline_ns < first)
            first = timer->deadline_ns;
    if (first == UINT64_MAX)
        return -1;
    if (first <= now)
        return 0;
    uint64_t wait_ms = (first - now + 999999) / 1000000;
    return wait_ms > 60000 ? 60000 : (int)wait_ms;
}

/* One timer a round: firing one may change the list. */
static void fire_one_timer(void) {
    uint64_t now = monotonic_ns();
    for (struct timer *timer = timers; timer != NULL; timer = timer->next)
        if (timer->deadline_ns <= now) {
            timer_off(timer);
            timer->fire(timer);
            return;
        }
}

void event_loop(void (*after)(void)) {
    for (;;) {
        /* One event a round: its handler may close and free other sources. epoll rotates what is ready, so nobody starves. */
        struct epoll_event event;
        int count = epoll_wait(epoll_fd, &event, 1, milliseconds_to_next_timer());
        if (count == 1) {
            struct event_source *source = event.data.ptr;
            source->handle(source, event.events);
        }
        fire_one_timer();
        after();
    }
}
