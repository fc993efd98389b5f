/* Memory verifier: writes whole pages of its own memory over and over, and checks each page before it is written again.
 *
 * A page that a move, a snapshot or a restore loses, takes from an earlier time or copies in two halves is found when it is
 * written next, or by the sweep, which reads all pages in turn. Every second it prints one line:
 *
 *   memory-verify: seconds=3 pages=16384 written=7680 verified=30720 sweeps=1 errors=0
 *
 * and at the first bad page, with exit status 1:
 *
 *   memory-verify: FAILED page=17 verdict=stale expected_version=9 found_version=8 found_page=17
 *
 * Options: --size-mib 64; --rate-mib 10 (written per second); --sweep-mib 20 (read per second); --hot-percent 10 and
 * --hot-share 90 (90 % of the writes go to the first 10 % of the pages); --seconds 0 (0: until it is killed).
 */
#include "pattern.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define USAGE \
	"[--size-mib N] [--rate-mib N] [--sweep-mib N] [--hot-percent N] [--hot-share N] [--seconds N]"

struct memory {
	uint64_t *pages;
	uint32_t *versions;
	uint64_t count, written, verified, sweeps, random, swept;
	double hot_pages, hot_share;
};

static uint64_t *page_at(const struct memory *memory, uint64_t number)
{
	return memory->pages + number * BLOCK_WORDS;
}

static void verify(struct memory *memory, uint64_t number)
{
	const uint64_t *page = page_at(memory, number);
	enum verdict verdict = pattern_check(page, number, memory->versions[number]);
	memory->verified++;
	if (verdict == BLOCK_GOOD)
		return;
	printf("memory-verify: FAILED page=%llu verdict=%s expected_version=%u found_version=%llu found_page=%llu\n",
	       (unsigned long long)number, verdict_name(verdict), memory->versions[number], (unsigned long long)page[1],
	       (unsigned long long)page[0]);
	fflush(stdout);
	exit(1);
}

static uint64_t choose(struct memory *memory)
{
	uint64_t value = mix(memory->random++);
	double share = (double)(value >> 40) / (1 << 24) * 100;
	uint64_t hot = (uint64_t)memory->hot_pages, cold = memory->count - hot;
	value = mix(value);
	if (cold == 0 || (hot > 0 && share < memory->hot_share))
		return value % hot;
	return hot + value % cold;
}

static void rewrite(struct memory *memory)
{
	uint64_t number = choose(memory);
	verify(memory, number);
	pattern_fill(page_at(memory, number), number, ++memory->versions[number]);
	memory->written++;
}

static void sweep(struct memory *memory)
{
	verify(memory, memory->swept);
	if (++memory->swept == memory->count) {
		memory->swept = 0;
		memory->sweeps++;
	}
}

static void start(struct memory *memory, int argc, char **argv)
{
	double size_mib = option(argc, argv, "--size-mib", 64);
	double hot_percent = option(argc, argv, "--hot-percent", 10);
	memory->count = (uint64_t)(size_mib * (1 << 20) / BLOCK_BYTES);
	memory->hot_share = option(argc, argv, "--hot-share", 90);
	memory->hot_pages = (double)memory->count * (hot_percent > 100 ? 100 : hot_percent) / 100;
	memory->random = (uint64_t)option(argc, argv, "--seed", 1) << 40;
	memory->pages = memory->count ? mmap(NULL, memory->count * BLOCK_BYTES, PROT_READ | PROT_WRITE,
					     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : MAP_FAILED;
	memory->versions = calloc(memory->count, sizeof *memory->versions);
	if (memory->pages == MAP_FAILED || !memory->versions) {
		fprintf(stderr, "memory-verify: no room for %.0f MiB; use a smaller --size-mib\n", size_mib);
		exit(2);
	}
	for (uint64_t number = 0; number < memory->count; number++)
		pattern_fill(page_at(memory, number), number, 0);
}

static void report(const struct memory *memory, unsigned seconds)
{
	printf("memory-verify: seconds=%u pages=%llu written=%llu verified=%llu sweeps=%llu errors=0\n", seconds,
	       (unsigned long long)memory->count, (unsigned long long)memory->written,
	       (unsigned long long)memory->verified, (unsigned long long)memory->sweeps);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct memory memory = {0};
	check_options(argc, argv, USAGE " [--seed N]");
	start(&memory, argc, argv);
	double write_rate = option(argc, argv, "--rate-mib", 10) * (1 << 20);
	double sweep_rate = option(argc, argv, "--sweep-mib", 20) * (1 << 20);
	double last_s = now_s(), next_report_s = last_s + 1, write_credit = 0, sweep_credit = 0;
	unsigned seconds_max = (unsigned)option(argc, argv, "--seconds", 0), seconds = 0;
	report(&memory, 0);
	while (!seconds_max || seconds < seconds_max) {
		double allowed = pace(&last_s, 1);
		for (write_credit += allowed * write_rate; write_credit >= BLOCK_BYTES; write_credit -= BLOCK_BYTES)
			rewrite(&memory);
		for (sweep_credit += allowed * sweep_rate; sweep_credit >= BLOCK_BYTES; sweep_credit -= BLOCK_BYTES)
			sweep(&memory);
		if (last_s >= next_report_s) {
			report(&memory, ++seconds);
			next_report_s = last_s + 1;
		}
	}
	return 0;
}
