#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "cgroup.h"
#include "channel.h"
#include "log.h"
#include "outlet.h"

/* How long the rest of the output may take after everything was killed. */
#define DRAIN_NS_MAX 2000000000u

enum guest_state guest_state = GUEST_BOOTED;

static pid_t pid = -1;
static uint32_t exit_code;
static bool exit_unsent;
static struct outlet standard_output, standard_error;

static void give_up_draining(struct timer *timer) {
    (void)timer;
    event_close(&standard_output.source);
    event_close(&standard_error.source);
}

static struct timer drain_timer = {.fire = give_up_draining};

int workload_start(const struct process_config *config) {
    int output[2], error[2];
    int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (nothing < 0 || !outlet_pipe(output) || !outlet_pipe(error))
        return errno;
    struct process_files files = {.input = nothing, .output = output[1], .error = error[1]};
    pid = process_spawn(config, &files, CGROUP_WORKLOAD);
    int cause = pid < 0 ? errno : 0;
    close(nothing);
    close(output[1]);
    close(error[1]);
    if (cause != 0) {
        close(output[0]);
        close(error[0]);
        return cause;
    }
    outlet_open(&standard_output, output[0], &log_queue, STREAM_STDOUT);
    outlet_open(&standard_error, error[0], &log_queue, STREAM_STDERR);
    guest_state = GUEST_RUNNING;
    return 0;
}

/* To the process alone, as `docker stop` does; what it started is killed when it has exited. */
int workload_signal(int number) {
    if (guest_state != GUEST_RUNNING)
        return ESRCH;
    return kill(pid, number) == 0 ? 0 : errno;
}

bool workload_reaped(pid_t reaped, int status) {
    if (guest_state != GUEST_RUNNING || reaped != pid)
        return false;
    exit_code = process_exit_code(status);
    guest_state = GUEST_EXITED;
    exit_unsent = true;
    cgroup_kill("architect");
    timer_set(&drain_timer, DRAIN_NS_MAX);
    return true;
}

uint32_t workload_exit_code(void) {
    return exit_code;
}

void workload_new_session(void) {
    exit_unsent = guest_state == GUEST_EXITED;
}

static void send_log(void) {
    struct record *record;
    while ((record = log_queue.unsent) != NULL && channel_has_room()) {
        struct frame_header frame = {.type = FRAME_LOG, .stream = record->stream, .seq = record->seq};
        struct log_payload payload = {.realtime_ns = record->realtime_ns};
        channel_send(&frame, &payload, sizeof payload, record->data, record->length);
        log_queue.unsent = record->next;
    }
}

void workload_send(void) {
    outlet_resume(&standard_output);
    outlet_resume(&standard_error);
    send_log();
    if (outlet_is_open(&standard_output) || outlet_is_open(&standard_error))
        return;
    if (exit_unsent && log_queue.unsent == NULL && channel_has_room()) {
        struct frame_header frame = {.type = FRAME_EXIT};
        struct exit_payload payload = {.code = exit_code};
        channel_send(&frame, &payload, sizeof payload, NULL, 0);
        exit_unsent = false;
    }
}
