#include "cgroup.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "event.h"

#define ROOT "/sys/fs/cgroup/"
#define FREEZE_NS_MAX 1000000000u

static bool write_file(const char *group, const char *name, const char *text) {
    char path[200];
    snprintf(path, sizeof path, ROOT "%s/%s", group, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool done = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    close(fd);
    return done;
}

void cgroup_make_all(void) {
    static const char *const controllers[] = {"+cpu", "+memory", "+io", "+pids", "+cpuset"};
    for (size_t i = 0; i < sizeof controllers / sizeof *controllers; i++)
        write_file(".", "cgroup.subtree_control", controllers[i]);
    mkdir(ROOT "architect", 0755);
    for (size_t i = 0; i < sizeof controllers / sizeof *controllers; i++)
        write_file("architect", "cgroup.subtree_control", controllers[i]);
    mkdir(ROOT CGROUP_WORKLOAD, 0755);
    mkdir(ROOT CGROUP_EXEC, 0755);
    mkdir(ROOT CGROUP_HOOK, 0755);
}

void cgroup_enter(const char *group) {
    write_file(group, "cgroup.procs", "0");
}

static bool is_frozen(void) {
    char text[256] = "";
    int fd = open(ROOT "architect/cgroup.events", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t count = read(fd, text, sizeof text - 1);
    close(fd);
    return count > 0 && strstr(text, "frozen 1") != NULL;
}

bool cgroup_set_frozen(bool frozen) {
    uint64_t deadline_ns = monotonic_ns() + FREEZE_NS_MAX;
    if (!write_file("architect", "cgroup.freeze", frozen ? "1" : "0"))
        return false;
    while (is_frozen() != frozen && monotonic_ns() < deadline_ns)
        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
    return is_frozen() == frozen;
}

void cgroup_kill(const char *group) {
    write_file(group, "cgroup.kill", "1");
}
