/* Freezing the workload and its exec sessions, for a clone's change of identity. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

/* Freezes or thaws, and answers request `id` when the kernel says that it is so. Processes that do not stand still within
 * `timeout_ms` (they wait for a disk, say) go on, all of them, and ETIMEDOUT names one; EBUSY: another request waits. */
void freeze_run(uint64_t id, bool frozen, uint32_t timeout_ms);
