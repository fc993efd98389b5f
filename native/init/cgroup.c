#include "cgroup.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>


static bool write_file(const char *group, const char *name, const char *text) {
    char path[200];
    snprintf(path, sizeof path, CGROUP_ROOT "%s/%s", group, name);
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
    mkdir(CGROUP_ROOT "architect", 0755);
    for (size_t i = 0; i < sizeof controllers / sizeof *controllers; i++)
        write_file("architect", "cgroup.subtree_control", controllers[i]);
    mkdir(CGROUP_ROOT CGROUP_WORKLOAD, 0755);
    mkdir(CGROUP_ROOT CGROUP_EXEC, 0755);
    mkdir(CGROUP_ROOT CGROUP_HOOK, 0755);
}

void cgroup_enter(const char *group) {
    write_file(group, "cgroup.procs", "0");
}

bool cgroup_freeze(bool frozen) {
    return write_file("architect", "cgroup.freeze", frozen ? "1" : "0");
}

/* One letter of its state, and its name: fields of /proc/PID/stat, where the name stands in brackets and may hold any character. */
static bool read_state(int pid, char *name, size_t size, char *state) {
    char path[32], text[512] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t count = read(fd, text, sizeof text - 1);
    close(fd);
    char *begin = strchr(text, '('), *end = strrchr(text, ')');
    if (count <= 0 || begin == NULL || end == NULL || end[1] != ' ')
        return false;
    *end = 0;
    snprintf(name, size, "%s", begin + 1);
    *state = end[2];
    return true;
}

static bool find_restless(const char *group, char *text, size_t size) {
    char path[200], name[64], state;
    int pid;
    bool found = false;
    snprintf(path, sizeof path, CGROUP_ROOT "%s/cgroup.procs", group);
    FILE *file = fopen(path, "re");
    while (file != NULL && !found && fscanf(file, "%d", &pid) == 1) {
        found = read_state(pid, name, sizeof name, &state) && state == 'D';
        if (found)
            snprintf(text, size, "process %d (%s) waits in the kernel, for a disk perhaps", pid, name);
    }
    if (file != NULL)
        fclose(file);
    return found;
}

void cgroup_restless(char *text, size_t size) {
    if (!find_restless(CGROUP_WORKLOAD, text, size) && !find_restless(CGROUP_EXEC, text, size))
        snprintf(text, size, "the processes did not get the processor in time");
}

void cgroup_kill(const char *group) {
    write_file(group, "cgroup.kill", "1");
}
