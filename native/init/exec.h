/* Exec sessions: processes beside the workload, with their own input and output, found again by id after the host changed. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "process.h"

/* The requests return 0 or an errno. */
int exec_start(uint32_t id, const struct process_config *config);
int exec_attach(uint32_t id, uint64_t output_position);
int exec_signal(uint32_t id, int number);
int exec_resize(uint32_t id, uint16_t rows, uint16_t columns);

/* Kills what still runs and forgets the session. */
int exec_close(uint32_t id);

void exec_input(uint32_t id, uint64_t position, const uint8_t *data, size_t length, bool end);
void exec_output_ack(uint32_t id, uint64_t seq);

bool exec_reaped(pid_t pid, int status);
void exec_new_session(void);
void exec_send(void);

/* The ids of the sessions there are; the count. */
uint32_t exec_ids(uint32_t *ids, uint32_t ids_max);
