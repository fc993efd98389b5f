/* PID 1 of every VM.
 *
 * Stage A: kernel file systems, all modules but those of disk and network card, the channel. The machine may be captured
 * here and resumed as many VMs. Stage B begins with the host's CONFIGURE (configure.c): disk, names, network; START runs the
 * image's process. One thread, one event loop, no blocking call but those that set the machine up. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cgroup.h"
#include "channel.h"
#include "event.h"
#include "exec.h"
#include "hook.h"
#include "layout.h"
#include "log.h"
#include "modules.h"
#include "mount.h"
#include "workload.h"

#define EARLY_MODULES "/modules/early"

/* Ending PID 1 is a kernel panic, and with panic=-1 a restart that QEMU reports to its owner. */
static void die(const char *what, int cause) __attribute__((noreturn));
static void die(const char *what, int cause) {
    int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
    dprintf(fd >= 0 ? fd : 2, "<2>architect: init: %s: %s\n", what, strerror(cause));
    _exit(1);
}

static void reap(struct event_source *source, uint32_t events) {
    struct signalfd_siginfo info;
    int status;
    (void)events;
    while (read(source->fd, &info, sizeof info) == sizeof info)
        continue;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        if (!workload_reaped(pid, status) && !exec_reaped(pid, status))
            hook_reaped(pid, status);
}

static void watch_children(void) {
    static struct event_source children = {.handle = reap};
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGCHLD);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    children.fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    event_watch(&children, EPOLLIN);
}

/* 0, 1 and 2 exist, so that no pipe or port of ours becomes one of them. */
static void open_standard_files(void) {
    int fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd < 2)
        fd = dup(fd);
}

int main(int argc, char **argv) {
    if (getpid() != 1) {
        if (argc == 2 && strcmp(argv[1], "--layout") == 0) {
            print_layout();
            return 0;
        }
        fprintf(stderr, "architect init: runs as PID 1 of a VM; --layout prints its protocol's structs\n");
        return 2;
    }
    const char *module = "";
    umask(0022);
    log_open();
    int cause = mount_kernel_file_systems();
    if (cause != 0)
        die("kernel file systems", cause);
    open_standard_files();
    cgroup_make_all();
    cause = modules_load(EARLY_MODULES, &module);
    if (cause != 0)
        die(module, cause);
    event_open();
    watch_children();
    if (!channel_open())
        die("virtio-serial port " PORT_NAME, ENODEV);
    event_loop(channel_progress);
}
