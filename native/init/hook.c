#include "hook.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cgroup.h"
#include "log.h"
#include "outlet.h"
#include "process.h"
#include "protocol.h"
#include "request.h"

#define FOLDER "/etc/architect/hooks/"
#define TIMEOUT_MS_MAX 60000

static const char *const names[] = {NULL, "before-suspend", "after-resume", "after-restore"};
static pid_t pid = -1;
static uint64_t request;
static bool timed_out;
static struct outlet output;

static void kill_late(struct timer *timer) {
    (void)timer;
    timed_out = true;
    cgroup_kill(CGROUP_HOOK);
    kill(pid, SIGKILL);
}

static struct timer deadline = {.fire = kill_late};

static int spawn(const char *name) {
    char path[64];
    char *args[] = {path, NULL}, *env[] = {NULL};
    snprintf(path, sizeof path, FOLDER "%s", name);
    if (access(path, X_OK) != 0)
        return errno;
    int ends[2], nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (nothing < 0 || !outlet_pipe(ends))
        return errno;
    char cwd[] = "/";
    struct process_config config = {.cwd = cwd, .args = args, .env = env};
    struct process_files files = {.input = nothing, .output = ends[1], .error = ends[1]};
    pid = process_spawn(&config, &files, CGROUP_HOOK);
    int cause = pid < 0 ? errno : 0;
    close(nothing);
    close(ends[1]);
    event_close(&output.source);
    outlet_open(&output, ends[0], &log_queue, STREAM_SYSTEM);
    return cause;
}

void hook_run(uint64_t id, uint32_t hook, uint32_t timeout_ms) {
    if (hook < HOOK_BEFORE_SUSPEND || hook > HOOK_AFTER_RESTORE) {
        request_answer(id, EINVAL, "there is no hook %u", hook);
        return;
    }
    if (pid >= 0) {
        request_answer(id, EBUSY, "another hook runs");
        return;
    }
    if (output.queue == NULL)
        output.source.fd = -1;
    int cause = spawn(names[hook]);
    if (cause != 0) {
        request_answer(id, cause == EACCES ? ENOENT : cause, "%s%s: %s", FOLDER, names[hook], strerror(cause));
        return;
    }
    request = id;
    timed_out = false;
    timer_set(&deadline, (uint64_t)(timeout_ms < TIMEOUT_MS_MAX ? timeout_ms : TIMEOUT_MS_MAX) * 1000000u);
}

bool hook_reaped(pid_t reaped, int status) {
    if (pid < 0 || reaped != pid)
        return false;
    timer_off(&deadline);
    outlet_drain(&output);
    pid = -1;
    uint32_t code = process_exit_code(status);
    if (timed_out)
        request_answer(request, ETIMEDOUT, "the hook did not end in time and was killed");
    else if (code != 0)
        request_answer(request, EIO, "the hook failed with exit code %u", code);
    else
        request_answer(request, 0, "%s", "");
    return true;
}

void hook_resume(void) {
    outlet_resume(&output);
}
