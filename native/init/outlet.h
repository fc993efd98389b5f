/* An outlet carries what a process writes into a record queue, and stops reading while the queue is full. */
#pragma once
#include "event.h"
#include "record_queue.h"

struct outlet {
    struct event_source source; /* first: handlers cast */
    struct record_queue *queue;
    uint8_t stream;
};

/* Takes over `fd`, which must not block. */
void outlet_open(struct outlet *outlet, int fd, struct record_queue *queue, uint8_t stream);

/* Reads on after the queue was full. */
void outlet_resume(struct outlet *outlet);

/* Reads all that is there now. True where nothing more was there, false where the queue is full first. */
bool outlet_drain(struct outlet *outlet);
bool outlet_is_open(const struct outlet *outlet);

/* Both ends of a pipe, close-on-exec; the reading or the writing end not blocking. */
bool outlet_pipe(int ends[2]);
bool inlet_pipe(int ends[2]);
