/* AFL++ as a child: started, counted, started again when it ends. */
#ifndef FUZZER_H
#define FUZZER_H

#include <stdint.h>
#include <sys/types.h>

struct fuzzer {
	pid_t pid;
	unsigned restarts;
	double restart_at_s;
	volatile uint64_t *executions;
};

/* Make the counter that the target counts its runs in, and start the fuzzer. Exits where the host lacks memory for that. */
void fuzzer_start(struct fuzzer *fuzzer);

/* Reap the fuzzer if it has ended, say so, and start it again a second later. */
void fuzzer_step(struct fuzzer *fuzzer, double now_s);

/* The files in AFL's queue, on the VM's disk. */
unsigned fuzzer_queue_length(void);

void fuzzer_stop(struct fuzzer *fuzzer);

#endif
