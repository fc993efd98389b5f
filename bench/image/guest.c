/* The benchmark's VM: sends every datagram back, and runs the memory verifier beside it, which it can halt and let go on.
 *
 *   bench-guest PORT PROGRAM [ARGUMENT...]
 *
 * UDP PORT: a datagram that begins with "BENCHCTL" and a letter is an order: R lets the program run, H halts it, ? asks. It is answered
 * with "BENCHCTL" and the program's last line of output. Any other datagram is sent back as it is. A program that ends, or that says
 * FAILED, leaves its line standing for good: what was wrong is seen by whoever asks.
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

struct guest {
	int datagrams, output;
	pid_t program;
	size_t filled;
	int is_final;
	char partial[512], line[512];
};

static void take_line(struct guest *guest, const char *line)
{
	if (guest->is_final)
		return;
	snprintf(guest->line, sizeof guest->line, "%s", line);
	guest->is_final = strstr(line, "FAILED") != NULL;
	if (guest->is_final) {
		printf("%s\n", line);
		fflush(stdout);
	}
}

static void read_output(struct guest *guest)
{
	size_t filled = guest->filled < sizeof guest->partial - 1 ? guest->filled : 0; /* a line that is too long: begin again */
	ssize_t got = read(guest->output, guest->partial + filled, sizeof guest->partial - 1 - filled);
	if (got <= 0) {
		int status = 0;
		char line[64];
		waitpid(guest->program, &status, 0);
		snprintf(line, sizeof line, "FAILED: the program ended with status %#x", status);
		take_line(guest, line);
		close(guest->output);
		guest->output = -1;
		return;
	}
	guest->partial[filled + (size_t)got] = 0;
	char *start = guest->partial, *end;
	for (; (end = strchr(start, '\n')) != NULL; start = end + 1) {
		*end = 0;
		take_line(guest, start);
	}
	guest->filled = strlen(start);
	memmove(guest->partial, start, guest->filled);
}

static size_t obey(struct guest *guest, char *datagram, size_t length)
{
	char order = length > ORDER_BYTES ? datagram[ORDER_BYTES] : '?';
	if (guest->output >= 0 && order == 'R')
		kill(guest->program, SIGCONT);
	if (guest->output >= 0 && order == 'H')
		kill(guest->program, SIGSTOP);
	size_t said = strlen(guest->line);
	memcpy(datagram + ORDER_BYTES, guest->line, said);
	return ORDER_BYTES + said;
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
	if (pipe2(ends, O_CLOEXEC) < 0 || (guest->program = fork()) < 0) {
		perror("bench-guest");
		exit(1);
	}
	if (guest->program == 0) {
		dup2(ends[1], STDOUT_FILENO);
		execvp(command[0], command);
		perror(command[0]);
		_exit(127);
	}
	close(ends[1]);
	guest->output = ends[0];
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
		fprintf(stderr, "usage: bench-guest PORT PROGRAM [ARGUMENT...]\n");
		return 2;
	}
	if (sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &first) < 0)
		perror("bench-guest: real-time priority");
	open_port(&guest, argv[1]);
	start_program(&guest, argv + 2);
	for (;;) {
		struct pollfd polled[2] = {{guest.datagrams, POLLIN, 0}, {guest.output, POLLIN, 0}};
		if (poll(polled, 2, -1) < 0 && errno != EINTR)
			return 1;
		if (polled[0].revents)
			answer_datagrams(&guest);
		if (polled[1].revents)
			read_output(&guest);
	}
}
