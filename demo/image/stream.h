/* One end of a checksummed stream (the protocol is in service.c): sends its own data at a rate, verifies the other's.
 *
 * A stream owns its socket, which does not block. Nothing here waits: `stream_step` does what can be done now.
 */
#ifndef STREAM_H
#define STREAM_H

#include "sha256.h"

#define HELLO_BYTES 32
#define HEADER_BYTES 32
#define PAYLOAD_BYTES_MAX 16384
#define STREAM_TICK_S 0.0195

enum frame_kind { FRAME_DATA = 1, FRAME_END = 2, FRAME_BAD = 3 };
enum stream_state { STREAM_CONNECTING, STREAM_HELLO, STREAM_OPEN, STREAM_ENDING, STREAM_CLOSED, STREAM_FAILED };

struct direction {
	uint64_t seed, offset;
	struct sha256 hash;
};

struct stream {
	int socket, is_connector;
	enum stream_state state;
	double rate, credit, last_s, last_frame_s;
	struct direction out, in;
	uint8_t input[HEADER_BYTES + PAYLOAD_BYTES_MAX], output[HEADER_BYTES + PAYLOAD_BYTES_MAX];
	size_t input_bytes, output_bytes, output_sent;
};

/* A stream on a connected socket (acceptor), or on one that connects (connector: it sends the hello). */
void stream_accept(struct stream *stream, int socket);
void stream_connect(struct stream *stream, int socket, uint64_t seed, double rate);

/* What poll(2) is to wait for. */
short stream_events(const struct stream *stream);

/* Read, verify, send what `now_s` allows. Afterwards the state is CLOSED or FAILED if the stream is over; its socket is closed. */
void stream_step(struct stream *stream, short events, double now_s);

double now_s(void);

#endif
