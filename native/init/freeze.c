#include "freeze.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cgroup.h"
#include "event.h"
#include "request.h"

#define TIMEOUT_MS_MAX 60000

static void look(struct event_source *source, uint32_t events);
static void give_up(struct timer *timer);

/* The kernel tells a change of this file, by which a wait for a process in its hands (a read of a slow disk) holds up nothing else. */
static struct event_source changes = {.fd = -1, .handle = look};
static struct timer deadline = {.fire = give_up};
static uint64_t request;
static bool wanted;

static bool is_done(void) {
    char text[256] = "";
    ssize_t count = pread(changes.fd, text, sizeof text - 1, 0);
    return count > 0 && (strstr(text, "frozen 1") != NULL) == wanted;
}

static void end(int status, const char *text) {
    timer_off(&deadline);
    event_close(&changes);
    request_answer(request, status, "%s", text);
}

static void look(struct event_source *source, uint32_t events) {
    (void)source, (void)events;
    if (is_done())
        end(0, "");
}

static void give_up(struct timer *timer) {
    (void)timer;
    char restless[128] = "";
    if (is_done()) {
        end(0, "");
        return;
    }
    cgroup_restless(restless, sizeof restless);
    if (wanted)
        cgroup_freeze(false);
    end(ETIMEDOUT, restless);
}

void freeze_run(uint64_t id, bool frozen, uint32_t timeout_ms) {
    if (changes.fd >= 0) {
        request_answer(id, EBUSY, "another request to freeze or thaw waits");
        return;
    }
    changes.fd = open(CGROUP_EVENTS, O_RDONLY | O_CLOEXEC);
    request = id;
    wanted = frozen;
    if (changes.fd < 0 || !cgroup_freeze(frozen)) {
        end(errno, strerror(errno));
        return;
    }
    if (is_done()) {
        end(0, "");
        return;
    }
    event_watch(&changes, EPOLLPRI);
    timer_set(&deadline, (uint64_t)(timeout_ms < TIMEOUT_MS_MAX ? timeout_ms : TIMEOUT_MS_MAX) * 1000000u);
}
