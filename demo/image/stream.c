/* See stream.h, and service.c for the protocol. */
#include "stream.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define GOLDEN 0x9e3779b97f4a7c15ull
#define HEARTBEAT_S 0.5
#define BURST_S 0.1

static const char MAGIC[8] = "ARCHSTR1";

double now_s(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

/* Bytes `offset` to `offset + length` of the data of `seed`. */
static void fill_data(uint64_t seed, uint64_t offset, uint8_t *at, size_t length)
{
	while (length > 0) {
		uint64_t value = seed + (offset / 8 + 1) * GOLDEN;
		value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
		value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
		value ^= value >> 31;
		for (value >>= 8 * (offset % 8); length > 0; value >>= 8) {
			*at++ = (uint8_t)value;
			length--;
			if (++offset % 8 == 0)
				break;
		}
	}
}

static void put64(uint8_t *at, uint64_t value)
{
	for (int i = 0; i < 8; i++)
		at[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get(const uint8_t *at, int bytes)
{
	uint64_t value = 0;
	for (int i = bytes - 1; i >= 0; i--)
		value = value << 8 | at[i];
	return value;
}

static void start(struct stream *stream, int socket)
{
	memset(stream, 0, offsetof(struct stream, input));
	stream->input_bytes = stream->output_bytes = stream->output_sent = 0;
	stream->socket = socket;
	stream->last_s = stream->last_frame_s = now_s();
	sha256_start(&stream->out.hash);
	sha256_start(&stream->in.hash);
}

void stream_accept(struct stream *stream, int socket)
{
	start(stream, socket);
	stream->state = STREAM_HELLO;
}

void stream_connect(struct stream *stream, int socket, uint64_t seed, double rate)
{
	start(stream, socket);
	stream->state = STREAM_CONNECTING;
	stream->is_connector = 1;
	stream->rate = rate;
	stream->out.seed = seed;
	stream->in.seed = ~seed;
}

static void finish(struct stream *stream, enum stream_state state)
{
	close(stream->socket);
	stream->socket = -1;
	stream->state = state;
}

static void queue_hello(struct stream *stream)
{
	memcpy(stream->output, MAGIC, 8);
	put64(stream->output + 8, stream->out.seed);
	put64(stream->output + 16, (uint64_t)stream->rate);
	put64(stream->output + 24, 0);
	stream->output_bytes = HELLO_BYTES;
}

static void queue_frame(struct stream *stream, enum frame_kind kind, size_t length)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	put64(stream->output, kind | (uint64_t)length << 32);
	put64(stream->output + 8, stream->out.offset);
	put64(stream->output + 16, stream->in.offset);
	put64(stream->output + 24, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
	stream->output_bytes = HEADER_BYTES + length;
	stream->output_sent = 0;
}

static void queue_data(struct stream *stream, size_t length)
{
	uint8_t *payload = stream->output + HEADER_BYTES;
	fill_data(stream->out.seed, stream->out.offset, payload, length);
	queue_frame(stream, FRAME_DATA, length);
	sha256_add(&stream->out.hash, payload, length);
	stream->out.offset += length;
}

static void queue_end(struct stream *stream)
{
	sha256_digest(&stream->out.hash, stream->output + HEADER_BYTES);
	queue_frame(stream, FRAME_END, SHA256_BYTES);
}

/* Tell the other end, as far as it still reads, where its data went wrong; nothing can be said after it. */
static void fail(struct stream *stream, const char *why)
{
	printf("service: stream FAILED at byte %llu received: %s\n", (unsigned long long)stream->in.offset, why);
	fflush(stdout);
	if (stream->output_sent == stream->output_bytes) {
		queue_frame(stream, FRAME_BAD, 0);
		send(stream->socket, stream->output, stream->output_bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
	}
	finish(stream, STREAM_FAILED);
}

static int take_hello(struct stream *stream)
{
	if (stream->input_bytes < HELLO_BYTES)
		return 0;
	if (memcmp(stream->input, MAGIC, 8)) {
		fail(stream, "not a hello");
		return 0;
	}
	stream->in.seed = get(stream->input + 8, 8);
	stream->out.seed = ~stream->in.seed;
	stream->rate = (double)get(stream->input + 16, 8);
	stream->state = STREAM_OPEN;
	return HELLO_BYTES;
}

static void take_data(struct stream *stream, const uint8_t *payload, size_t length)
{
	uint8_t expected[PAYLOAD_BYTES_MAX];
	fill_data(stream->in.seed, stream->in.offset, expected, length);
	for (size_t i = 0; i < length; i++)
		if (payload[i] != expected[i]) {
			stream->in.offset += i;
			fail(stream, "a wrong byte");
			return;
		}
	sha256_add(&stream->in.hash, payload, length);
	stream->in.offset += length;
}

static void take_end(struct stream *stream, const uint8_t *digest)
{
	uint8_t mine[SHA256_BYTES];
	sha256_digest(&stream->in.hash, mine);
	if (memcmp(mine, digest, SHA256_BYTES))
		fail(stream, "a wrong digest");
	else if (stream->is_connector)
		finish(stream, STREAM_CLOSED);
	else
		stream->state = STREAM_ENDING;
}

/* The bytes of the frame that was taken, 0 if it is not whole yet or the stream is over. */
static size_t take_frame(struct stream *stream)
{
	if (stream->input_bytes < HEADER_BYTES)
		return 0;
	uint64_t kind = get(stream->input, 4), length = get(stream->input + 4, 4), offset = get(stream->input + 8, 8);
	if ((kind != FRAME_DATA || length > PAYLOAD_BYTES_MAX) && (kind != FRAME_END || length != SHA256_BYTES)) {
		fail(stream, kind == FRAME_BAD ? "the other end found our data wrong" : "not a frame");
		return 0;
	}
	if (offset != stream->in.offset) {
		fail(stream, "a frame of another offset");
		return 0;
	}
	if (stream->input_bytes < HEADER_BYTES + length)
		return 0;
	if (kind == FRAME_DATA)
		take_data(stream, stream->input + HEADER_BYTES, length);
	else
		take_end(stream, stream->input + HEADER_BYTES);
	return stream->socket < 0 ? 0 : HEADER_BYTES + length;
}

static void receive(struct stream *stream)
{
	ssize_t got = recv(stream->socket, stream->input + stream->input_bytes, sizeof stream->input - stream->input_bytes, 0);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0) {
		fail(stream, got ? strerror(errno) : "the other end closed without END");
		return;
	}
	stream->input_bytes += (size_t)got;
	while (stream->state == STREAM_HELLO || stream->state == STREAM_OPEN) {
		size_t taken = stream->state == STREAM_HELLO ? (size_t)take_hello(stream) : take_frame(stream);
		if (taken == 0)
			break;
		stream->input_bytes -= taken;
		memmove(stream->input, stream->input + taken, stream->input_bytes);
	}
}

static void prepare_output(struct stream *stream, double now)
{
	double past_s = now - stream->last_s;
	stream->last_s = now;
	stream->credit += stream->rate * (past_s < BURST_S ? past_s : BURST_S);
	// At most a frame a tick: the event loop turns for every packet of every stream, and a packet costs much under TCG.
	if (stream->output_sent < stream->output_bytes || now - stream->last_frame_s < STREAM_TICK_S)
		return;
	size_t length = stream->credit < PAYLOAD_BYTES_MAX ? (size_t)stream->credit : PAYLOAD_BYTES_MAX;
	if (length == 0 && now - stream->last_frame_s < HEARTBEAT_S)
		return;
	stream->credit -= (double)length;
	stream->last_frame_s = now;
	queue_data(stream, length);
}

static void transmit(struct stream *stream)
{
	while (stream->output_sent < stream->output_bytes) {
		size_t left = stream->output_bytes - stream->output_sent;
		ssize_t sent = send(stream->socket, stream->output + stream->output_sent, left, MSG_NOSIGNAL);
		if (sent < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (sent < 0) {
			fail(stream, strerror(errno));
			return;
		}
		stream->output_sent += (size_t)sent;
	}
}

short stream_events(const struct stream *stream)
{
	if (stream->state == STREAM_CONNECTING)
		return POLLOUT;
	return (short)(POLLIN | (stream->output_sent < stream->output_bytes ? POLLOUT : 0));
}

static void connected(struct stream *stream)
{
	int error = 0;
	socklen_t length = sizeof error;
	getsockopt(stream->socket, SOL_SOCKET, SO_ERROR, &error, &length);
	if (error) {
		finish(stream, STREAM_CLOSED);
		return;
	}
	stream->state = STREAM_OPEN;
	queue_hello(stream);
}

void stream_step(struct stream *stream, short events, double now)
{
	if (stream->state == STREAM_CONNECTING) {
		if (events)
			connected(stream);
		return;
	}
	if (events & (POLLIN | POLLHUP | POLLERR))
		receive(stream);
	if (stream->state == STREAM_OPEN)
		prepare_output(stream, now);
	if (stream->state == STREAM_OPEN || stream->state == STREAM_ENDING)
		transmit(stream);
	if (stream->state == STREAM_ENDING && stream->output_sent == stream->output_bytes) {
		// What was sent last was data: our END follows, then there is nothing more to say.
		queue_end(stream);
		transmit(stream);
		finish(stream, STREAM_CLOSED);
	}
}
