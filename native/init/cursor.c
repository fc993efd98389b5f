#include "cursor.h"

#include <stdlib.h>
#include <string.h>

struct cursor cursor_over(const void *data, size_t length) {
    return (struct cursor){.data = data, .left = length, .bad = false};
}

void cursor_copy(struct cursor *cursor, void *target, size_t length) {
    if (cursor->bad || cursor->left < length) {
        cursor->bad = true;
        memset(target, 0, length);
        return;
    }
    memcpy(target, cursor->data, length);
    cursor->data += length;
    cursor->left -= length;
}

const uint8_t *cursor_bytes(struct cursor *cursor, size_t *length) {
    uint32_t count;
    cursor_copy(cursor, &count, sizeof count);
    *length = 0;
    if (cursor->bad || cursor->left < count) {
        cursor->bad = true;
        return (const uint8_t *)"";
    }
    const uint8_t *bytes = cursor->data;
    cursor->data += count;
    cursor->left -= count;
    *length = count;
    return bytes;
}

char *cursor_text(struct cursor *cursor) {
    size_t length;
    const uint8_t *bytes = cursor_bytes(cursor, &length);
    char *text = NULL;
    if (!cursor->bad && memchr(bytes, 0, length) == NULL)
        text = malloc(length + 1);
    if (text == NULL) {
        cursor->bad = true;
        return NULL;
    }
    memcpy(text, bytes, length);
    text[length] = 0;
    return text;
}
