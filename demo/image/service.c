/* The demo's service: checksummed streams both ways, datagrams, a status line, and a fuzzer beside it, all in one VM.
 *
 * It exists to be moved while it works: a byte that is lost, doubled, changed or comes out of order ends its stream as FAILED.
 *
 * TCP 7000: streams. Who connects is the *connector*, who is connected to the *acceptor*; otherwise both ends do the same. All
 * numbers are little-endian.
 *
 *   hello (connector, 32 bytes)   "ARCHSTR1" | seed u64 | rate u64: bytes/s that the acceptor is to send | 0 u64
 *   frame (both, 32 bytes + payload)
 *                                 kind u32 | length u32 | offset u64 | verified u64 | sent_ns u64 | payload
 *     kind 1 DATA                 `length` bytes (0 to 16384) of the sender's data from `offset`, a frame every 20 ms; empty ones
 *                                 are heartbeats, at least two a second
 *     kind 2 END                  the sender (the connector first) has sent `offset` bytes; payload: their SHA-256. The acceptor
 *                                 that finds it right answers with its own END and closes
 *     kind 3 BAD                  the receiver's data went wrong after `verified` bytes; the stream is over
 *     verified                    bytes of the receiver's data that the sender has verified
 *     sent_ns                     the sender's monotonic clock, nanoseconds
 *   The data: byte i is byte i%8 (lowest first) of word i/8 of splitmix64, word n = mix(seed + (n + 1) * 0x9e3779b97f4a7c15) (see
 *   fill_data in stream.c). The connector's seed is that of the hello, the acceptor's its complement.
 *
 * TCP out: with OUTSIDE=ADDRESS:PORT the service is also the connector of one stream to there, at OUTSIDE_RATE bytes/s (16384) each
 * way, which it opens again a second after it has ended. It never sends END.
 *
 * UDP 7001: datagrams of 32 to 1400 bytes are sent back: sequence u64 | sent_ns u64 | echoed u64 | 0 u64 | anything. `echoed` is
 * set by the service: how many it has sent back before this one.
 *
 * TCP 7002: one line of JSON, then the connection is closed:
 *   {"service_pid": 7, "started_at_s": 1700000000.0, "uptime_s": 12.5, "cpu_s": 0.4, "fuzzer_pid": 8, "fuzzer_restarts": 0, "executions": 4711,
 *    "queue_files": 12, "streams_open": 2, "streams_total": 2, "streams_failed": 0, "bytes_verified": 1000, "bytes_sent": 1000,
 *    "datagrams": 3, "outside_state": "open", "outside_connects": 1, "outside_failed": 0, "outside_verified": 7, "outside_sent": 7}
 *   `executions` counts the runs of the fuzzed program, by itself. outside_state is off, connecting or open.
 */
#define _GNU_SOURCE
#include "fuzzer.h"
#include "stream.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define STREAM_PORT 7000
#define DATAGRAM_PORT 7001
#define STATUS_PORT 7002
#define STREAMS_MAX 64
#define DATAGRAM_BYTES_MIN 32
#define DATAGRAM_BYTES_MAX 1400
#define DATAGRAMS_PER_STEP 64
#define TICK_MS 20
#define CHECK_S 0.2
#define RECONNECT_S 1.0

struct datagram {
	struct sockaddr_in peer;
	uint8_t bytes[DATAGRAM_BYTES_MAX];
	size_t length; /* 0: none */
};

struct service {
	struct fuzzer fuzzer;
	struct datagram unsent;
	int listener, datagrams, status, has_outside;
	double started_s, started_at_s, reconnect_at_s, outside_rate;
	struct sockaddr_in outside_address;
	struct stream streams[STREAMS_MAX], outside;
	uint64_t streams_total, streams_failed, ended_verified, ended_sent, datagrams_echoed;
	uint64_t outside_connects, outside_failed;
};

static struct service service;
static volatile sig_atomic_t is_stopping;

static void stop(int number)
{
	(void)number;
	is_stopping = 1;
}

static int open_port(int type, uint16_t port)
{
	int on = 1, opened = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
	setsockopt(opened, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (opened < 0 || bind(opened, (struct sockaddr *)&address, sizeof address) < 0 ||
	    (type == SOCK_STREAM && listen(opened, 128) < 0)) {
		fprintf(stderr, "service: port %u: %s\n", port, strerror(errno));
		exit(1);
	}
	return opened;
}

/* The fuzzer takes all the time there is. The service goes first whenever it has something to do (and the fuzzer runs as SCHED_IDLE),
 * or the gaps that its clients measure would be the scheduler's. Where that is forbidden it works all the same. */
static void go_first(void)
{
	struct sched_param first = {.sched_priority = 1};
	if (sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &first) < 0)
		perror("service: real-time priority");
}

static void read_environment(void)
{
	const char *outside = getenv("OUTSIDE"), *rate = getenv("OUTSIDE_RATE");
	char host[64];
	unsigned port = 0;
	service.outside_rate = rate ? atof(rate) : 16384;
	service.outside.socket = -1;
	if (!outside)
		return;
	service.outside_address.sin_family = AF_INET;
	if (sscanf(outside, "%63[0-9.]:%u", host, &port) != 2 || port - 1 > 65534 ||
	    inet_pton(AF_INET, host, &service.outside_address.sin_addr) != 1) {
		fprintf(stderr, "service: OUTSIDE=%s: not ADDRESS:PORT\n", outside);
		exit(2);
	}
	service.outside_address.sin_port = htons((uint16_t)port);
	service.has_outside = 1;
}

static void no_delay(int socket)
{
	int on = 1;
	setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void connect_outside(double now)
{
	uint64_t seed;
	int opened = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	service.reconnect_at_s = now + RECONNECT_S;
	if (opened < 0 || getrandom(&seed, sizeof seed, 0) != sizeof seed)
		return;
	no_delay(opened);
	if (connect(opened, (struct sockaddr *)&service.outside_address, sizeof service.outside_address) < 0 && errno != EINPROGRESS) {
		close(opened);
		return;
	}
	stream_connect(&service.outside, opened, seed, service.outside_rate);
}

static void accept_streams(void)
{
	for (int i = 0; i < STREAMS_MAX; i++) {
		if (service.streams[i].socket >= 0)
			continue;
		int opened = accept4(service.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (opened < 0)
			return;
		no_delay(opened);
		stream_accept(&service.streams[i], opened);
		service.streams_total++;
	}
}

/* 0: there is no room; the datagram is kept, and no other is received until it has gone: what cannot be sent waits, none is dropped. */
static int send_datagram(struct datagram *datagram)
{
	ssize_t sent = sendto(service.datagrams, datagram->bytes, datagram->length, 0, (struct sockaddr *)&datagram->peer,
			      sizeof datagram->peer);
	if (sent < 0 && (errno == EAGAIN || errno == ENOBUFS))
		return 0;
	datagram->length = 0;
	return 1;
}

static void echo_datagrams(void)
{
	struct datagram *datagram = &service.unsent;
	if (datagram->length && !send_datagram(datagram))
		return;
	for (int i = 0; i < DATAGRAMS_PER_STEP; i++) {
		socklen_t length = sizeof datagram->peer;
		ssize_t got = recvfrom(service.datagrams, datagram->bytes, sizeof datagram->bytes, MSG_TRUNC,
				       (struct sockaddr *)&datagram->peer, &length);
		if (got < 0)
			return;
		if (got < DATAGRAM_BYTES_MIN || got > DATAGRAM_BYTES_MAX)
			continue;
		datagram->length = (size_t)got;
		memcpy(datagram->bytes + 16, &service.datagrams_echoed, 8);
		service.datagrams_echoed++;
		if (!send_datagram(datagram))
			return;
	}
}

static const char *outside_state(void)
{
	if (!service.has_outside)
		return "off";
	return service.outside.socket >= 0 && service.outside.state != STREAM_CONNECTING ? "open" : "connecting";
}

static int format_status(char *line, size_t size)
{
	uint64_t open = 0, verified = service.ended_verified, sent = service.ended_sent;
	for (int i = 0; i < STREAMS_MAX; i++)
		if (service.streams[i].socket >= 0) {
			open++;
			verified += service.streams[i].in.offset;
			sent += service.streams[i].out.offset;
		}
	return snprintf(line, size,
			"{\"service_pid\": %d, \"started_at_s\": %.3f, \"uptime_s\": %.3f, \"cpu_s\": %.3f, \"fuzzer_pid\": %d, "
			"\"fuzzer_restarts\": %u, \"executions\": %llu, \"queue_files\": %u, \"streams_open\": %llu, "
			"\"streams_total\": %llu, \"streams_failed\": %llu, \"bytes_verified\": %llu, \"bytes_sent\": %llu, "
			"\"datagrams\": %llu, \"outside_state\": \"%s\", \"outside_connects\": %llu, \"outside_failed\": %llu, "
			"\"outside_verified\": %llu, \"outside_sent\": %llu}\n",
			getpid(), service.started_at_s, now_s() - service.started_s, (double)clock() / CLOCKS_PER_SEC, service.fuzzer.pid,
			service.fuzzer.restarts, (unsigned long long)*service.fuzzer.executions, fuzzer_queue_length(),
			(unsigned long long)open, (unsigned long long)service.streams_total,
			(unsigned long long)service.streams_failed, (unsigned long long)verified, (unsigned long long)sent,
			(unsigned long long)service.datagrams_echoed, outside_state(),
			(unsigned long long)service.outside_connects, (unsigned long long)service.outside_failed,
			(unsigned long long)service.outside.in.offset, (unsigned long long)service.outside.out.offset);
}

static void answer_status(void)
{
	char line[2048];
	int opened;
	while ((opened = accept4(service.status, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		int length = format_status(line, sizeof line);
		send(opened, line, (size_t)length, MSG_NOSIGNAL | MSG_DONTWAIT);
		close(opened);
	}
}

static void step_stream(struct stream *stream, short events, double now)
{
	stream_step(stream, events, now);
	if (stream->socket >= 0)
		return;
	service.streams_failed += stream->state == STREAM_FAILED;
	service.ended_verified += stream->in.offset;
	service.ended_sent += stream->out.offset;
}

static void step_outside(short events, double now)
{
	struct stream *stream = &service.outside;
	int was_connecting = stream->state == STREAM_CONNECTING;
	if (stream->socket < 0) {
		if (service.has_outside && now >= service.reconnect_at_s)
			connect_outside(now);
		return;
	}
	stream_step(stream, events, now);
	service.outside_connects += was_connecting && stream->state == STREAM_OPEN;
	service.outside_failed += stream->state == STREAM_FAILED;
	if (stream->socket < 0)
		service.reconnect_at_s = now + RECONNECT_S;
}

/* Wait for the next tick or whatever comes first, and do what it asks for. Only sockets that are open are polled, and system calls
 * are made only where poll has seen a reason: under TCG each costs what a hundred cost elsewhere. */
static void step(void)
{
	static double checked_s;
	struct pollfd polled[STREAMS_MAX + 4] = {
		{service.listener, POLLIN, 0},
		{service.datagrams, service.unsent.length ? POLLOUT : POLLIN, 0},
		{service.status, POLLIN, 0},
		{service.outside.socket, service.outside.socket < 0 ? 0 : stream_events(&service.outside), 0},
	};
	struct stream *streams[STREAMS_MAX];
	nfds_t count = 4;
	for (int i = 0; i < STREAMS_MAX; i++) {
		struct stream *stream = &service.streams[i];
		if (stream->socket < 0)
			continue;
		streams[count - 4] = stream;
		polled[count++] = (struct pollfd){stream->socket, stream_events(stream), 0};
	}
	if (poll(polled, count, TICK_MS) < 0 && errno != EINTR) {
		perror("service: poll");
		exit(1);
	}
	double now = now_s();
	if (polled[1].revents)
		echo_datagrams();
	for (nfds_t i = 4; i < count; i++)
		step_stream(streams[i - 4], polled[i].revents, now);
	step_outside(polled[3].revents, now);
	if (polled[0].revents)
		accept_streams();
	if (polled[2].revents)
		answer_status();
	if (now - checked_s >= CHECK_S) {
		checked_s = now;
		fuzzer_step(&service.fuzzer, now);
	}
}

int main(void)
{
	struct timespec date;
	clock_gettime(CLOCK_REALTIME, &date);
	service.started_at_s = date.tv_sec + date.tv_nsec / 1e9;
	service.started_s = now_s();
	for (int i = 0; i < STREAMS_MAX; i++)
		service.streams[i].socket = -1;
	read_environment();
	go_first();
	signal(SIGTERM, stop);
	signal(SIGINT, stop);
	signal(SIGPIPE, SIG_IGN);
	service.listener = open_port(SOCK_STREAM, STREAM_PORT);
	service.datagrams = open_port(SOCK_DGRAM, DATAGRAM_PORT);
	/* What comes while the fuzzer has the processor waits here; the usual 208 KiB hold some 250 datagrams. */
	setsockopt(service.datagrams, SOL_SOCKET, SO_RCVBUFFORCE, &(int){ 8 << 20 }, sizeof(int));
	service.status = open_port(SOCK_STREAM, STATUS_PORT);
	fuzzer_start(&service.fuzzer);
	while (!is_stopping)
		step();
	fuzzer_stop(&service.fuzzer);
	return 0;
}
