/* A cursor over a received payload: every read is bounds-checked, and one bad read spoils all that follow. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cursor {
    const uint8_t *data;
    size_t left;
    bool bad;
};

struct cursor cursor_over(const void *data, size_t length);

/* Copies the next `length` bytes to `target`; zeros where there are not so many. */
void cursor_copy(struct cursor *cursor, void *target, size_t length);

/* The next byte string (u32 length, bytes) with a NUL behind it, to be freed; NULL where it is not there whole or has a NUL inside. */
char *cursor_text(struct cursor *cursor);

/* The next byte string in place, its length in `*length`. */
const uint8_t *cursor_bytes(struct cursor *cursor, size_t *length);
