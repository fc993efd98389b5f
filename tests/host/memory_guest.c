/* A guest for tests of memory moves: maps the RAM file and writes pages that prove themselves.
 *
 * memory_guest FD BYTES. Lines on stdin, one answer line each:
 *   fill PERCENT         write that share of the pages once
 *   run RATE HOT         write pages until the next line: RATE a second (0: as fast as it goes), 90 % of them in the first HOT pages
 *                        of the data; each page is checked before it is written; answers when it runs, and again when it has stopped
 *   check                check all pages
 * RAM begins with a table: a sequence number per page. Word i of page p with sequence s is mix(p, s, i); sequence 0: zeros. */
#define _GNU_SOURCE
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define WORDS (PAGE / 8)

static uint64_t *ram;
static uint32_t *table;
static uint64_t pages, first, random_state = 88172645463325252ULL, writes;

static uint64_t next_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	return random_state ^= random_state << 17;
}

static uint64_t mix(uint64_t page, uint64_t sequence, uint64_t word)
{
	uint64_t value = page * 0x9E3779B97F4A7C15ULL + sequence * 0xC2B2AE3D27D4EB4FULL + word * 0x165667B19E3779F9ULL;

	return value ^ (value >> 29);
}

static int check(uint64_t page)
{
	volatile uint64_t *words = ram + page * WORDS;
	uint32_t sequence = table[page];

	for (uint64_t i = 0; i < WORDS; i++)
		if (words[i] != (sequence ? mix(page, sequence, i) : 0)) {
			printf("bad page %lu word %lu sequence %u value %lx table-page %lu\n", page, i, sequence, words[i],
			       page * 4 / PAGE);
			return 0;
		}
	return 1;
}

static void write_page(uint64_t page)
{
	uint64_t *words = ram + page * WORDS;
	uint32_t sequence = table[page] + 1;

	if (next_random() % 16 == 0) { /* now and then a page becomes zeros again */
		memset(words, 0, PAGE);
		table[page] = 0;
		return;
	}
	for (uint64_t i = 0; i < WORDS; i++)
		words[i] = mix(page, sequence, i);
	table[page] = sequence;
	writes++;
}

static int line_waits(void)
{
	struct pollfd in = { 0, POLLIN, 0 };

	return poll(&in, 1, 0) > 0;
}

static double now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec + at.tv_nsec * 1e-9;
}

static int run(uint64_t rate, uint64_t hot)
{
	double start = now();
	uint64_t done = 0;

	if (hot == 0 || hot > pages - first)
		hot = pages - first;
	while (!line_waits()) {
		uint64_t page = first + next_random() % (next_random() % 10 ? hot : pages - first);

		if (!check(page))
			return 0;
		write_page(page);
		done++;
		while (rate && done / (double)rate > now() - start && !line_waits())
			usleep(200);
	}
	return 1;
}

int main(int count, char **words)
{
	char line[200];
	uint64_t size, rate, hot, percent;

	if (count < 3)
		return 2;
	size = strtoull(words[2], 0, 10);
	ram = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(words[1]), 0);
	if (ram == MAP_FAILED)
		return 1;
	pages = size / PAGE;
	first = (pages * 4 + PAGE - 1) / PAGE;
	table = (uint32_t *)ram;
	setvbuf(stdin, 0, _IONBF, 0);
	setvbuf(stdout, 0, _IOLBF, 0);
	random_state ^= (uint64_t)getpid() << 32 ^ (uint64_t)time(0);
	printf("ready\n");
	while (fgets(line, sizeof line, stdin)) {
		if (sscanf(line, "fill %lu", &percent) == 1) {
			for (uint64_t page = first; page < pages; page++)
				if (next_random() % 100 < percent)
					write_page(page);
			printf("filled\n");
		} else if (sscanf(line, "run %lu %lu", &rate, &hot) == 2) {
			printf("running\n");
			if (run(rate, hot))
				printf("stopped %lu\n", writes);
		} else if (strncmp(line, "check", 5) == 0) {
			uint64_t page = first;

			while (page < pages && check(page))
				page++;
			if (page == pages)
				printf("good\n");
		} else {
			printf("paused\n");
		}
	}
	return 0;
}
