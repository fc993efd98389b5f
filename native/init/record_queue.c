#include "record_queue.h"

#include <stdlib.h>
#include <string.h>

#include "event.h"
#include "protocol.h"

void queue_init(struct record_queue *queue, size_t bytes_max) {
    memset(queue, 0, sizeof *queue);
    queue->next_seq = 1;
    queue->bytes_max = bytes_max;
}

bool queue_has_room(const struct record_queue *queue) {
    return queue->bytes + sizeof(struct record) + RECORD_BYTES_MAX <= queue->bytes_max;
}

bool queue_append(struct record_queue *queue, uint8_t stream, const void *data, size_t length) {
    struct record *record = malloc(sizeof *record + length);
    if (record == NULL)
        return false;
    record->next = NULL;
    record->seq = queue->next_seq++;
    record->realtime_ns = realtime_ns();
    record->length = (uint32_t)length;
    record->stream = stream;
    memcpy(record->data, data, length);
    if (queue->last != NULL)
        queue->last->next = record;
    else
        queue->first = record;
    queue->last = record;
    if (queue->unsent == NULL)
        queue->unsent = record;
    queue->bytes += sizeof *record + length;
    return true;
}

static void drop_first(struct record_queue *queue) {
    struct record *record = queue->first;
    queue->first = record->next;
    if (queue->first == NULL)
        queue->last = NULL;
    if (queue->unsent == record)
        queue->unsent = record->next;
    queue->acked_seq = record->seq;
    queue->bytes -= sizeof *record + record->length;
    free(record);
}

void queue_ack(struct record_queue *queue, uint64_t seq) {
    while (queue->first != NULL && queue->first->seq <= seq)
        drop_first(queue);
}

void queue_rewind(struct record_queue *queue, uint64_t seq) {
    queue->unsent = queue->first;
    while (queue->unsent != NULL && queue->unsent->seq <= seq)
        queue->unsent = queue->unsent->next;
}

void queue_free(struct record_queue *queue) {
    while (queue->first != NULL)
        drop_first(queue);
}
