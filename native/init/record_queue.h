/* Records on their way to the host: numbered, bounded, kept until acknowledged, sent again after a rewind. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct record {
    struct record *next;
    uint64_t seq; /* the first record has number 1 */
    uint64_t realtime_ns;
    uint32_t length;
    uint8_t stream;
    uint8_t data[];
};

struct record_queue {
    struct record *first, *last, *unsent;
    uint64_t next_seq, acked_seq;
    size_t bytes, bytes_max;
};

void queue_init(struct record_queue *queue, size_t bytes_max);

/* Whether one more record of the largest size fits. */
bool queue_has_room(const struct record_queue *queue);
bool queue_append(struct record_queue *queue, uint8_t stream, const void *data, size_t length);
void queue_ack(struct record_queue *queue, uint64_t seq);

/* Sends again everything after `seq`; what was acknowledged before is gone and is not. */
void queue_rewind(struct record_queue *queue, uint64_t seq);
void queue_free(struct record_queue *queue);
