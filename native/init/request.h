/* Requests by the host's ids: each is done once, and its answer is repeated to a host that asks again. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

/* True where the request is new and is to be done; false where it was seen: its answer is sent again once it is known. */
bool request_is_new(uint64_t id);

/* Answers request `id`: status 0 or an errno, and a text for people where it is not 0. */
void request_answer(uint64_t id, int status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Sends the answers that wait. */
void request_send_answers(void);
