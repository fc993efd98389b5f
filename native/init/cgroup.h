/* The cgroups of the guest: everything that is not init lives under `architect`, so that it can be frozen and killed at once. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#define CGROUP_ROOT "/sys/fs/cgroup/"
#define CGROUP_WORKLOAD "architect/workload"
#define CGROUP_EXEC "architect/exec"
#define CGROUP_HOOK "hook"
#define CGROUP_EVENTS CGROUP_ROOT "architect/cgroup.events"

/* Makes the groups; cgroup2 is mounted. */
void cgroup_make_all(void);

/* Moves the calling process. */
void cgroup_enter(const char *group);

/* Tells the kernel to freeze or thaw workload and exec sessions; CGROUP_EVENTS says when it has. False: errno says why not. */
bool cgroup_freeze(bool frozen);

/* What keeps one of them from standing still, in words. */
void cgroup_restless(char *text, size_t size);

/* Kills workload and exec sessions, or one group of them. */
void cgroup_kill(const char *group);
