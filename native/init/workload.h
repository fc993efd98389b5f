/* The VM's process: what the image is for. Its output is the log, its exit is the VM's exit. */
#pragma once
#include <stdbool.h>
#include <sys/types.h>

#include "process.h"
#include "protocol.h"

extern enum guest_state guest_state;

/* 0, or an errno. */
int workload_start(const struct process_config *config);
int workload_signal(int number);

/* True where `pid` was the workload. */
bool workload_reaped(pid_t pid, int status);

uint32_t workload_exit_code(void);

/* Every host is told the exit: what one has heard its successor may not know. */
void workload_new_session(void);

/* Sends log records, and the exit behind the last of them. */
void workload_send(void);
