#define _GNU_SOURCE
#include "outlet.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "protocol.h"

static uint8_t buffer[RECORD_BYTES_MAX];

/* 1: read something, 0: nothing there, -1: closed. */
static int read_once(struct outlet *outlet) {
    ssize_t count = read(outlet->source.fd, buffer, sizeof buffer);
    if (count > 0) {
        if (!queue_append(outlet->queue, outlet->stream, buffer, (size_t)count))
            _exit(1); /* Out of memory in PID 1: a panic and a restart from the last epoch beat a log with a hole. */
        return 1;
    }
    if (count < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    /* A terminal whose last process has gone says EIO. */
    event_close(&outlet->source);
    return -1;
}

/* Unwatched while the queue is full: a hang-up cannot be masked and would spin. */
static void readable(struct event_source *source, uint32_t events) {
    struct outlet *outlet = (struct outlet *)source;
    (void)events;
    if (queue_has_room(outlet->queue))
        read_once(outlet);
    else
        event_unwatch(source);
}

void outlet_open(struct outlet *outlet, int fd, struct record_queue *queue, uint8_t stream) {
    *outlet = (struct outlet){.source = {.fd = fd, .handle = readable}, .queue = queue, .stream = stream};
    event_watch(&outlet->source, EPOLLIN);
}

void outlet_resume(struct outlet *outlet) {
    if (outlet_is_open(outlet) && !outlet->source.watched && queue_has_room(outlet->queue))
        event_watch(&outlet->source, EPOLLIN);
}

bool outlet_drain(struct outlet *outlet) {
    while (outlet_is_open(outlet)) {
        if (!queue_has_room(outlet->queue))
            return false;
        if (read_once(outlet) == 0)
            return true;
    }
    return true;
}

bool outlet_is_open(const struct outlet *outlet) {
    return outlet->queue != NULL && outlet->source.fd >= 0;
}

static bool make_pipe(int ends[2], int our_end) {
    if (pipe2(ends, O_CLOEXEC) != 0)
        return false;
    fcntl(ends[our_end], F_SETFL, O_NONBLOCK);
    return true;
}

bool outlet_pipe(int ends[2]) {
    return make_pipe(ends, 0);
}

bool inlet_pipe(int ends[2]) {
    return make_pipe(ends, 1);
}
