/* The guest's end of the channel: finds the port, cuts bytes into frames, keeps the session, sends frames. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol.h"

/* Opens the virtio-serial port named `architect`. False where there is none. */
bool channel_open(void);

/* Receives, handles and sends all that can be handled and sent now. Never blocks. */
void channel_progress(void);

/* Whether a frame of the largest record fits into the output now. */
bool channel_has_room(void);

/* Queues one frame: `head` and `data` one behind the other are its payload. The caller has asked for room. */
void channel_send(const struct frame_header *frame, const void *head, size_t head_length, const void *data, size_t data_length);

/* Starts the session of a HELLO. False where it is the running one said again. */
bool channel_begin_session(uint32_t session);

/* Sends the rest and waits until the host has it, at most that long. */
void channel_flush(uint64_t timeout_ns);
