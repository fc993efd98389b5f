/* Hooks: programs of the image that are told of a pause, one at a time, in bounded time. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Runs the hook and answers request `id` when it has ended: ENOENT where the image has none, ETIMEDOUT where it was killed. */
void hook_run(uint64_t id, uint32_t hook, uint32_t timeout_ms);
bool hook_reaped(pid_t pid, int status);

/* Reads on where the log was full. */
void hook_resume(void);
