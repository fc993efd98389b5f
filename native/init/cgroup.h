/* The cgroups of the guest: everything that is not init lives under `architect`, so that it can be frozen and killed at once. */
#pragma once
#include <stdbool.h>

#define CGROUP_WORKLOAD "architect/workload"
#define CGROUP_EXEC "architect/exec"
#define CGROUP_HOOK "hook"

/* Makes the groups; cgroup2 is mounted. */
void cgroup_make_all(void);

/* Moves the calling process. */
void cgroup_enter(const char *group);

/* Freezes or thaws workload and exec sessions, and waits until the kernel says so, at most a second. */
bool cgroup_set_frozen(bool frozen);

/* Kills workload and exec sessions, or one group of them. */
void cgroup_kill(const char *group);
