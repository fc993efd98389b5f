/* The benchmark's VM: sends every datagram back, and runs verifiers beside it, which it can halt and let go on.
 *
 *   bench-guest PORT PROGRAM [ARGUMENT...] [-- PROGRAM [ARGUMENT...]]
 *
 * UDP PORT: a datagram that begins with "BENCHCTL" and a letter is an order: R lets the programs run, H halts them, ? asks. It is
 * answered with "BENCHCTL" and each program's last line of output, " | " between them. Any other datagram is sent back as it is. A
 * program that ends, or that says FAILED, leaves its line standing for good: what was wrong is seen by whoever asks.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define ORDER "BENCHCTL"
#define ORDER_BYTES 8
#define DATAGRAM_BYTES_MAX 1400
#define DATAGRAMS_PER_STEP 64
#define PROGRAMS_MAX 2

struct program {
	int output;
	pid_t pid;
	size_t filled;
	int is_final;
	char partial[512], line[512];
};

struct guest {
	int datagrams, count;
	struct program programs[PROGRAMS_MAX];
};

static void take_line(struct program *program, const char *line)
{
	if (program->is_final)
		return;
	snprintf(program->line, sizeof program->line, "%s", line);
	program->is_final = strstr(line, "FAILED") != NULL;
	if (program->is_final) {
		printf("%s\n", line);
		fflush(stdout);
	}
}

static void read_output(struct program *program)
{
	/* a line that is too long: begin again */
	size_t filled = program->filled < sizeof program->partial - 1 ? program->filled : 0;
	ssize_t got = read(program->output, program->partial + filled, sizeof program->partial - 1 - filled);
	if (got <= 0) {
		int status = 0;
		char line[64];
		waitpid(program->pid, &status, 0);
		snprintf(line, sizeof line, "FAILED: the program ended with status %#x", status);
		take_line(program, line);
		close(program->output);
		program->output = -1;
		return;
	}
	program->partial[filled + (size_t)got] = 0;
	char *start = program->partial, *end;
	for (; (end = strchr(start, '\n')) != NULL; start = end + 1) {
		*end = 0;
		take_line(program, start);
	}
	program->filled = strlen(start);
	memmove(program->partial, start, program->filled);
}

static size_t obey(struct guest *guest, char *datagram, size_t length)
{
	char order = length > ORDER_BYTES ? datagram[ORDER_BYTES] : '?';
	size_t said = ORDER_BYTES;
	for (int i = 0; i < guest->count; i++) {
		struct program *program = &guest->programs[i];
		if (program->output >= 0 && (order == 'R' || order == 'H'))
			kill(program->pid, order == 'R' ? SIGCONT : SIGSTOP);
		said += (size_t)snprintf(datagram + said, DATAGRAM_BYTES_MAX - said, "%s%s", i ? " | " : "", program->line);
	}
	return said;
}

static void answer_datagrams(struct guest *guest)
{
	char datagram[DATAGRAM_BYTES_MAX];
	for (int i = 0; i < DATAGRAMS_PER_STEP; i++) {
		struct sockaddr_in from;
		socklen_t length = sizeof from;
		ssize_t got = recvfrom(guest->datagrams, datagram, sizeof datagram, 0, (struct sockaddr *)&from, &length);
		if (got < 0)
			return;
		size_t size = (size_t)got;
		if (size >= ORDER_BYTES && memcmp(datagram, ORDER, ORDER_BYTES) == 0)
			size = obey(guest, datagram, size);
		sendto(guest->datagrams, datagram, size, 0, (struct sockaddr *)&from, length);
	}
}

static void start_program(struct guest *guest, char **command)
{
	int ends[2];
	struct program *program = &guest->programs[guest->count++];
	if (pipe2(ends, O_CLOEXEC) < 0 || (program->pid = fork()) < 0) {
		perror("bench-guest");
		exit(1);
	}
	if (program->pid == 0) {
		dup2(ends[1], STDOUT_FILENO);
		execvp(command[0], command);
		perror(command[0]);
		_exit(127);
	}
	close(ends[1]);
	program->output = ends[0];
}

/* Starts each command of a list that "--" divides. */
static void start_programs(struct guest *guest, char **words)
{
	char **command = words;
	for (char **word = words; *word; word++) {
		if (strcmp(*word, "--") != 0)
			continue;
		*word = NULL;
		start_program(guest, command);
		command = word + 1;
		if (guest->count == PROGRAMS_MAX)
			return;
	}
	if (*command)
		start_program(guest, command);
}

static void open_port(struct guest *guest, const char *port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
	guest->datagrams = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int room = 8 << 20;
	// What waited out a pause arrives at once.
	if (setsockopt(guest->datagrams, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room) < 0)
		perror("bench-guest: room for datagrams");
	if (guest->datagrams < 0 || bind(guest->datagrams, (struct sockaddr *)&address, sizeof address) < 0) {
		perror("bench-guest: port");
		exit(1);
	}
}

int main(int argc, char **argv)
{
	struct guest guest = {0};
	// The gaps that a client measures are to be the move's, not those of this guest's scheduler.
	struct sched_param first = {.sched_priority = 1};
	if (argc < 3) {
		fprintf(stderr, "usage: bench-guest PORT PROGRAM [ARGUMENT...] [-- PROGRAM [ARGUMENT...]]\n");
		return 2;
	}
	if (sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &first) < 0)
		perror("bench-guest: real-time priority");
	open_port(&guest, argv[1]);
	start_programs(&guest, argv + 2);
	for (;;) {
		struct pollfd polled[1 + PROGRAMS_MAX] = {{guest.datagrams, POLLIN, 0}};
		for (int i = 0; i < guest.count; i++)
			polled[1 + i] = (struct pollfd){guest.programs[i].output, POLLIN, 0};
		if (poll(polled, 1 + (nfds_t)guest.count, -1) < 0 && errno != EINTR)
			return 1;
		if (polled[0].revents)
			answer_datagrams(&guest);
		for (int i = 0; i < guest.count; i++)
			if (polled[1 + i].revents)
				read_output(&guest.programs[i]);
	}
}
