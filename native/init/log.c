#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "protocol.h"

struct record_queue log_queue;

void log_open(void) {
    queue_init(&log_queue, LOG_BYTES_MAX);
}

/* Also to the console: it is all there is where the channel is not. */
void say(const char *format, ...) {
    char line[512] = "architect: ";
    size_t start = strlen(line);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line + start, sizeof line - start - 1, format, arguments);
    va_end(arguments);
    size_t length = strlen(line);
    line[length++] = '\n';
    if (queue_has_room(&log_queue))
        queue_append(&log_queue, STREAM_SYSTEM, line, length);
}
