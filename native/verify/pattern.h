/* A 4 KiB block that knows what it is: number, version, and a body that follows from both, so that a check tells apart
 * a block that is missing, one of an earlier time, one that was written in part, and one that belongs elsewhere.
 *
 * Used by the memory and the disk verifier: each keeps the version that it wrote last beside the blocks.
 */
#ifndef PATTERN_H
#define PATTERN_H

#include <stdint.h>

#define BLOCK_BYTES 4096
#define BLOCK_WORDS (BLOCK_BYTES / 8)

enum verdict { BLOCK_GOOD, BLOCK_LOST, BLOCK_STALE, BLOCK_NEWER, BLOCK_TORN, BLOCK_MISPLACED };

/* Make `words` the block `number` in `version`. */
void pattern_fill(uint64_t *words, uint64_t number, uint64_t version);

/* What `words` is, if it should be block `number` in `version`. */
enum verdict pattern_check(const uint64_t *words, uint64_t number, uint64_t version);

const char *verdict_name(enum verdict verdict);

/* A step of splitmix64: a well mixed number of a counter. */
uint64_t mix(uint64_t value);

/* Seconds of CLOCK_MONOTONIC. */
double now_s(void);

/* Sleep until the next tick of TICK_S; returns how many bytes `rate_bytes_s` allows since the last call, at most those of
 * BURST_S: a VM that was paused does not hurry afterwards. */
#define TICK_S 0.01
#define BURST_S 0.1
double pace(double *last_s, double rate_bytes_s);

/* The value of an option `--name VALUE` as a number, or `otherwise`; exits with status 2 on anything else that is wrong. */
double option(int argc, char **argv, const char *name, double otherwise);
const char *text_option(int argc, char **argv, const char *name, const char *otherwise);
void check_options(int argc, char **argv, const char *usage);

#endif
