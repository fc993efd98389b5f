#include "request.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "channel.h"

#define REQUESTS_REMEMBERED 64

struct request {
    uint64_t id;
    bool used, answered, unsent;
    uint32_t status;
    char text[256];
};

static struct request requests[REQUESTS_REMEMBERED];
static size_t oldest;

static struct request *find(uint64_t id) {
    for (size_t i = 0; i < REQUESTS_REMEMBERED; i++)
        if (requests[i].used && requests[i].id == id)
            return &requests[i];
    return NULL;
}

bool request_is_new(uint64_t id) {
    struct request *known = find(id);
    if (known != NULL) {
        known->unsent = known->answered;
        return false;
    }
    requests[oldest] = (struct request){.id = id, .used = true};
    oldest = (oldest + 1) % REQUESTS_REMEMBERED;
    return true;
}

void request_answer(uint64_t id, int status, const char *format, ...) {
    struct request *request = find(id);
    if (request == NULL)
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(request->text, sizeof request->text, format, arguments);
    va_end(arguments);
    request->status = (uint32_t)status;
    request->answered = request->unsent = true;
}

void request_send_answers(void) {
    for (size_t i = 0; i < REQUESTS_REMEMBERED && channel_has_room(); i++) {
        struct request *request = &requests[i];
        if (!request->unsent)
            continue;
        request->unsent = false;
        struct frame_header frame = {.type = FRAME_ANSWER, .seq = request->id};
        struct answer_payload payload = {.status = request->status};
        channel_send(&frame, &payload, sizeof payload, request->text, strlen(request->text));
    }
}
