/* What the demo fuzzes: a parser of a small language of records, deep enough that AFL finds new paths for days.
 *
 *   record := "REC" version '{' field* '}'         version: 1 digit
 *   field  := name '=' value ';'                   name: 1 to 8 letters
 *   value  := number | '"' text '"' | '[' value* ']'
 *
 * Built with AFL's compiler: persistent, its input in shared memory. Each run is counted in memory that the service shares with us
 * (fuzzer.c). One bug is planted for the fuzzer to find: a record of version 7 with a field "abort" that holds [[42]].
 */
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define COUNTER_FD 100
#define RUNS_PER_PROCESS 1000
#define DEPTH_MAX 16

__AFL_FUZZ_INIT();

struct input {
	const unsigned char *at, *end;
	int version, depth, is_abort;
};

static volatile uint64_t sink;

static int next(struct input *input)
{
	return input->at < input->end ? *input->at : -1;
}

static int take(struct input *input, int byte)
{
	if (next(input) != byte)
		return 0;
	input->at++;
	return 1;
}

static int parse_number(struct input *input)
{
	uint64_t number = 0;
	int digits = 0;
	for (; next(input) >= '0' && next(input) <= '9' && digits < 20; digits++)
		number = number * 10 + (uint64_t)(*input->at++ - '0');
	if (digits == 0)
		return 0;
	if (number > 1000)
		sink += number;
	if (number == 42 && input->depth == 2 && input->is_abort && input->version == 7)
		abort();
	return 1;
}

static int parse_text(struct input *input)
{
	unsigned checksum = 0;
	while (next(input) >= 0 && next(input) != '"') {
		int byte = *input->at++;
		if (byte == '\\') {
			switch (next(input)) {
			case 'n': checksum += 10; break;
			case 't': checksum += 9; break;
			case 'x': checksum ^= 0xff; break;
			case '\\': checksum *= 3; break;
			default: return 0;
			}
			input->at++;
		}
		checksum = checksum * 31 + (unsigned)byte;
	}
	if (checksum % 1021 == 7)
		sink++;
	return take(input, '"');
}

static int parse_value(struct input *input)
{
	if (take(input, '"'))
		return parse_text(input);
	if (!take(input, '['))
		return parse_number(input);
	if (++input->depth > DEPTH_MAX)
		return 0;
	while (next(input) != ']')
		if (!parse_value(input) || (!take(input, ',') && next(input) != ']'))
			return 0;
	input->depth--;
	return take(input, ']');
}

static int parse_field(struct input *input)
{
	char name[9] = {0};
	int length = 0;
	for (; next(input) >= 'a' && next(input) <= 'z' && length < 8; length++)
		name[length] = (char)*input->at++;
	if (length == 0 || !take(input, '='))
		return 0;
	input->is_abort = strcmp(name, "abort") == 0;
	if (strcmp(name, "size") == 0)
		sink += 1;
	else if (strcmp(name, "owner") == 0)
		sink += 2;
	else if (strcmp(name, "list") == 0)
		sink += 3;
	return parse_value(input) && take(input, ';');
}

static int parse_record(struct input *input)
{
	if (!take(input, 'R') || !take(input, 'E') || !take(input, 'C'))
		return 0;
	input->version = next(input) - '0';
	if (input->version < 0 || input->version > 9)
		return 0;
	input->at++;
	if (!take(input, '{'))
		return 0;
	while (next(input) != '}')
		if (!parse_field(input))
			return 0;
	return take(input, '}');
}

int main(void)
{
	static uint64_t alone;
	uint64_t *count = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, COUNTER_FD, 0);
	if (count == MAP_FAILED)
		count = &alone;
	__AFL_INIT();
	// From here on we are the fork server's child, which AFL stops between runs: it would outlive a fuzzer that was killed.
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	unsigned char *data = __AFL_FUZZ_TESTCASE_BUF;
	while (__AFL_LOOP(RUNS_PER_PROCESS)) {
		int length = __AFL_FUZZ_TESTCASE_LEN;
		struct input input = {data, data + length, 0, 0, 0};
		while (input.at < input.end && parse_record(&input))
			;
		__atomic_fetch_add(count, 1, __ATOMIC_RELAXED);
	}
	return 0;
}
