/* The one event loop of PID 1: file descriptors by epoll, timers on CLOCK_MONOTONIC. Nothing here allocates. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

struct event_source {
    int fd; /* -1 where closed */
    bool watched;
    void (*handle)(struct event_source *source, uint32_t events);
};

struct timer {
    uint64_t deadline_ns; /* 0 where it is off */
    void (*fire)(struct timer *timer);
    struct timer *next;
    bool listed;
};

void event_open(void);
void event_watch(struct event_source *source, uint32_t events);
void event_unwatch(struct event_source *source);

/* Stops watching and closes; harmless where it is closed already. */
void event_close(struct event_source *source);

void timer_set(struct timer *timer, uint64_t delay_ns);
void timer_off(struct timer *timer);
uint64_t monotonic_ns(void);
uint64_t realtime_ns(void);

/* Runs for ever; `after` runs after each event and each timer. */
void event_loop(void (*after)(void)) __attribute__((noreturn));
