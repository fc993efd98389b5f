/* Witness: acknowledges writes to somebody outside, who can tell afterwards whether one was lost, doubled or set back.
 *
 * TCP 7000, one connection at a time, lines:
 *
 *   N            appends the number to the chain (chain = mix(chain ^ N)) in memory and to the file, flushed; answer "N CHAIN"
 *   check        reads the file back past the page cache; answer "disk COUNT CHAIN", the chain made anew from what is in it
 *   stir S       dirties 32 MiB of memory over and over for S seconds, beside; answer "stirring"
 *   fill M       writes M MiB of noise to a file, past the page cache; answer "filled"
 *
 * CHAIN is 16 hex digits. UDP 7000: a datagram of 8 bytes (a number) is sent back with 8 more: how many were before it.
 * Option: --path /witness.dat
 */
#define _GNU_SOURCE
#include "pattern.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PORT 7000
#define LINE_BYTES 64
#define BLOCK 4096
#define STIR_BYTES (32 << 20)

struct record {
	uint64_t number, chain;
};

struct witness {
	const char *path;
	int listener, client, datagrams, file;
	uint64_t chain, count, answered;
	char line[LINE_BYTES];
	size_t length;
};

static void die(const char *what)
{
	printf("witness: FAILED %s: %s\n", what, strerror(errno));
	fflush(stdout);
	exit(1);
}

static int open_socket(int type)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(PORT)};
	int one = 1, found = socket(AF_INET, type | SOCK_CLOEXEC, 0);
	if (found < 0 || setsockopt(found, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0 ||
	    bind(found, (struct sockaddr *)&address, sizeof address) < 0)
		die("socket");
	if (type == SOCK_STREAM && listen(found, 4) < 0)
		die("listen");
	return found;
}

static void answer(struct witness *witness, const char *text)
{
	size_t length = strlen(text), sent = 0;
	while (sent < length) {
		ssize_t count = send(witness->client, text + sent, length - sent, MSG_NOSIGNAL);
		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0)
			return;
		sent += (size_t)count;
	}
}

static void append(struct witness *witness, uint64_t number)
{
	char text[LINE_BYTES];
	struct record record = {number, mix(witness->chain ^ number)};
	if (pwrite(witness->file, &record, sizeof record, (off_t)(witness->count * sizeof record)) != sizeof record)
		die("pwrite");
	witness->chain = record.chain;
	witness->count++;
	snprintf(text, sizeof text, "%llu %016llx\n", (unsigned long long)number, (unsigned long long)record.chain);
	answer(witness, text);
}

static void check(struct witness *witness)
{
	char text[LINE_BYTES];
	struct record *records = aligned_alloc(BLOCK, BLOCK);
	uint64_t chain = 0, count = 0;
	int reader = open(witness->path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	ssize_t length;
	if (!records || reader < 0)
		die("open");
	while ((length = pread(reader, records, BLOCK, (off_t)(count * sizeof *records))) > 0) {
		for (size_t index = 0; index < (size_t)length / sizeof *records; index++, count++) {
			chain = mix(chain ^ records[index].number);
			if (chain != records[index].chain)
				goto out;
		}
		if (length < BLOCK)
			break;
	}
	if (length < 0)
		die("pread");
out:
	close(reader);
	free(records);
	snprintf(text, sizeof text, "disk %llu %016llx\n", (unsigned long long)count, (unsigned long long)chain);
	answer(witness, text);
}

static void stir(double seconds)
{
	if (fork() != 0)
		return;
	uint64_t *words = malloc(STIR_BYTES), round = 0;
	for (double end_s = now_s() + seconds; words && now_s() < end_s; round++)
		for (size_t at = 0; at < STIR_BYTES / sizeof *words; at += BLOCK / sizeof *words)
			words[at] = mix(round ^ at);
	_exit(0);
}

static void fill(unsigned mib)
{
	uint64_t *noise = aligned_alloc(BLOCK, 1 << 20), seed = 1;
	int file = open("/fill.dat", O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT | O_CLOEXEC, 0600);
	if (!noise || file < 0)
		die("fill");
	for (size_t at = 0; at < (1 << 20) / sizeof *noise; at++)
		noise[at] = mix(seed++);
	while (mib--)
		if (write(file, noise, 1 << 20) != 1 << 20)
			die("fill");
	if (fdatasync(file) < 0)
		die("fill");
	close(file);
	free(noise);
}

static void obey(struct witness *witness, const char *line)
{
	char *end;
	uint64_t number = strtoull(line, &end, 10);
	if (end != line && *end == 0)
		append(witness, number);
	else if (strcmp(line, "check") == 0)
		check(witness);
	else if (sscanf(line, "stir %llu", (unsigned long long *)&number) == 1) {
		stir((double)number);
		answer(witness, "stirring\n");
	} else if (sscanf(line, "fill %llu", (unsigned long long *)&number) == 1) {
		fill((unsigned)number);
		answer(witness, "filled\n");
	} else
		answer(witness, "what\n");
}

static void hear(struct witness *witness)
{
	ssize_t length = recv(witness->client, witness->line + witness->length, LINE_BYTES - 1 - witness->length, 0);
	if (length <= 0) {
		close(witness->client);
		witness->client = -1;
		return;
	}
	witness->length += (size_t)length;
	for (char *end; (end = memchr(witness->line, '\n', witness->length)) != NULL;) {
		*end = 0;
		obey(witness, witness->line);
		witness->length -= (size_t)(end + 1 - witness->line);
		memmove(witness->line, end + 1, witness->length);
	}
	if (witness->length == LINE_BYTES - 1)
		witness->length = 0;
}

static void echo(struct witness *witness)
{
	struct sockaddr_in peer;
	socklen_t size = sizeof peer;
	uint64_t words[2];
	if (recvfrom(witness->datagrams, words, 8, 0, (struct sockaddr *)&peer, &size) != 8)
		return;
	words[1] = witness->answered++;
	sendto(witness->datagrams, words, sizeof words, 0, (struct sockaddr *)&peer, size);
}

int main(int argc, char **argv)
{
	struct witness witness = {.path = "/witness.dat", .client = -1};
	if (argc == 3 && strcmp(argv[1], "--path") == 0)
		witness.path = argv[2];
	signal(SIGCHLD, SIG_IGN);
	witness.file = open(witness.path, O_RDWR | O_CREAT | O_TRUNC | O_DSYNC | O_CLOEXEC, 0600);
	if (witness.file < 0)
		die("open");
	witness.listener = open_socket(SOCK_STREAM);
	witness.datagrams = open_socket(SOCK_DGRAM);
	printf("witness: ready\n");
	fflush(stdout);
	for (;;) {
		struct pollfd waits[] = {{witness.listener, POLLIN, 0}, {witness.datagrams, POLLIN, 0}, {witness.client, POLLIN, 0}};
		if (poll(waits, 3, -1) < 0 && errno != EINTR)
			die("poll");
		if (waits[2].revents)
			hear(&witness);
		if (waits[1].revents)
			echo(&witness);
		if (waits[0].revents && witness.client < 0)
			witness.client = accept(witness.listener, NULL, NULL), witness.length = 0;
		else if (waits[0].revents)
			poll(NULL, 0, 10);
	}
}
