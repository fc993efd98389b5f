/* The log of the VM: what the workload writes, and what init itself has to say. */
#pragma once
#include "record_queue.h"

extern struct record_queue log_queue;

void log_open(void);

/* A line of init's own in the log (stream "system"). */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
