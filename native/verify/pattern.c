/* See pattern.h. Word 0 is the number, word 1 the version, word 2 a sum of both, the others count up from that sum. */
#include "pattern.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define STRIDE 0x9e3779b97f4a7c15ull

uint64_t mix(uint64_t value)
{
	value += STRIDE;
	value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
	value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
	return value ^ (value >> 31);
}

static uint64_t sum(uint64_t number, uint64_t version)
{
	return mix(mix(number) ^ version) | 1;
}

void pattern_fill(uint64_t *words, uint64_t number, uint64_t version)
{
	uint64_t word = sum(number, version);
	words[0] = number;
	words[1] = version;
	for (int i = 2; i < BLOCK_WORDS; i++, word += STRIDE)
		words[i] = word;
}

static int is_whole(const uint64_t *words, uint64_t number, uint64_t version)
{
	uint64_t word = sum(number, version);
	if (words[0] != number || words[1] != version)
		return 0;
	for (int i = 2; i < BLOCK_WORDS; i++, word += STRIDE)
		if (words[i] != word)
			return 0;
	return 1;
}

enum verdict pattern_check(const uint64_t *words, uint64_t number, uint64_t version)
{
	int zeros = 1;
	if (is_whole(words, number, version))
		return BLOCK_GOOD;
	for (int i = 0; i < BLOCK_WORDS; i++)
		zeros &= words[i] == 0;
	if (zeros)
		return BLOCK_LOST;
	if (!is_whole(words, words[0], words[1]))
		return BLOCK_TORN;
	if (words[0] != number)
		return BLOCK_MISPLACED;
	return words[1] < version ? BLOCK_STALE : BLOCK_NEWER;
}

const char *verdict_name(enum verdict verdict)
{
	static const char *names[] = {"good", "lost", "stale", "newer", "torn", "misplaced"};
	return names[verdict];
}

double now_s(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

double pace(double *last_s, double rate_bytes_s)
{
	double now = now_s(), past_s = now - *last_s;
	if (past_s < TICK_S) {
		struct timespec pause = {0, (long)((TICK_S - past_s) * 1e9)};
		nanosleep(&pause, NULL);
		now = now_s();
		past_s = now - *last_s;
	}
	*last_s = now;
	return rate_bytes_s * (past_s < BURST_S ? past_s : BURST_S);
}

const char *text_option(int argc, char **argv, const char *name, const char *otherwise)
{
	for (int i = 1; i + 1 < argc; i += 2)
		if (strcmp(argv[i], name) == 0)
			return argv[i + 1];
	return otherwise;
}

double option(int argc, char **argv, const char *name, double otherwise)
{
	const char *text = text_option(argc, argv, name, NULL);
	char *end;
	double value = text ? strtod(text, &end) : otherwise;
	if (text && (*end || end == text || !(value >= 0) || value > 1e12)) {
		fprintf(stderr, "%s: %s %s: not a number that makes sense\n", argv[0], name, text);
		exit(2);
	}
	return value;
}

void check_options(int argc, char **argv, const char *usage)
{
	for (int i = 1; i < argc; i += 2) {
		size_t length = strlen(argv[i]);
		const char *found = strstr(usage, argv[i]);
		if (i + 1 == argc || strncmp(argv[i], "--", 2) || !found || (found[length] != ' ' && found[length] != ']')) {
			fprintf(stderr, "usage: %s %s\n", argv[0], usage);
			exit(2);
		}
	}
}
