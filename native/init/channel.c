/* Bytes arrive and leave in any pieces, the host comes and goes without notice, and either end may have stopped in the middle
 * of a frame. So a frame starts with a magic number, is covered by a CRC, and carries the host's random session number:
 * what is not whole or not of this session is skipped. On connecting the host sends zeros worth the longest frame first, so
 * that no half frame of its predecessor swallows its HELLO. */
#include "channel.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "crc32.h"
#include "dispatch.h"
#include "event.h"
#include "outbound.h"

#define PORTS "/sys/class/virtio-ports"
#define INPUT_BYTES (sizeof(struct frame_header) + PAYLOAD_BYTES_MAX)
#define OUTPUT_BYTES (128u * 1024u)
#define ROOM_BYTES (sizeof(struct frame_header) + sizeof(struct log_payload) + RECORD_BYTES_MAX)

static struct event_source port = {.fd = -1};
static uint8_t input[INPUT_BYTES], output[OUTPUT_BYTES];
static size_t input_used, output_used;
static uint32_t session;
static bool has_session;

static bool is_our_port(const char *name) {
    char path[300], text[64] = "";
    snprintf(path, sizeof path, PORTS "/%s/name", name);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    bool found = fgets(text, sizeof text, file) != NULL && strcmp(text, PORT_NAME "\n") == 0;
    fclose(file);
    return found;
}

/* The loop runs channel_progress() after every event; the event itself needs no more than to happen. */
static void wake(struct event_source *source, uint32_t events) {
    (void)source;
    (void)events;
}

bool channel_open(void) {
    DIR *ports = opendir(PORTS);
    char path[300];
    for (struct dirent *entry; ports != NULL && port.fd < 0 && (entry = readdir(ports)) != NULL;) {
        if (entry->d_name[0] == '.' || !is_our_port(entry->d_name))
            continue;
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        port.fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    }
    if (ports != NULL)
        closedir(ports);
    if (port.fd < 0)
        return false;
    port.handle = wake;
    /* Edge-triggered: a port without a host is POLLHUP all the time. */
    event_watch(&port, EPOLLIN | EPOLLOUT | EPOLLET);
    return true;
}

bool channel_has_room(void) {
    return has_session && OUTPUT_BYTES - output_used >= ROOM_BYTES;
}

void channel_send(const struct frame_header *frame, const void *head, size_t head_length, const void *data, size_t data_length) {
    struct frame_header header = *frame;
    size_t total = sizeof header + head_length + data_length;
    if (!has_session || OUTPUT_BYTES - output_used < total)
        return;
    header.magic = FRAME_MAGIC;
    header.length = (uint32_t)(head_length + data_length);
    header.session = session;
    header.crc = 0;
    uint32_t crc = crc32_update(0, &header, sizeof header);
    crc = crc32_update(crc, head, head_length);
    header.crc = crc32_update(crc, data, data_length);
    uint8_t *target = output + output_used;
    memcpy(target, &header, sizeof header);
    memcpy(target + sizeof header, head, head_length);
    memcpy(target + sizeof header + head_length, data, data_length);
    output_used += total;
}

bool channel_begin_session(uint32_t new_session) {
    if (has_session && session == new_session)
        return false;
    session = new_session;
    has_session = true;
    output_used = 0;
    return true;
}

static void drop_input(size_t count) {
    input_used -= count;
    memmove(input, input + count, input_used);
}

/* Skips to the next byte that may start a frame. */
static void resynchronise(void) {
    const uint8_t *next = input_used > 1 ? memchr(input + 1, FRAME_MAGIC & 0xFF, input_used - 1) : NULL;
    drop_input(next != NULL ? (size_t)(next - input) : input_used);
}

static bool crc_is_right(struct frame_header header) {
    uint32_t expected = header.crc;
    header.crc = 0;
    uint32_t crc = crc32_update(0, &header, sizeof header);
    return crc32_update(crc, input + sizeof header, header.length) == expected;
}

/* Handles one frame of the input; false where there is no whole one. */
static bool take_frame(void) {
    while (input_used >= sizeof(struct frame_header)) {
        struct frame_header header;
        memcpy(&header, input, sizeof header);
        if (header.magic != FRAME_MAGIC || header.length > PAYLOAD_BYTES_MAX) {
            resynchronise();
            continue;
        }
        if (input_used < sizeof header + header.length)
            return false;
        if (!crc_is_right(header)) {
            resynchronise();
            continue;
        }
        if (header.type == FRAME_HELLO || (has_session && header.session == session))
            dispatch(&header, input + sizeof header);
        drop_input(sizeof header + header.length);
        return true;
    }
    return false;
}

/* True where bytes came. The end of file that a port without a host reads as changes nothing: the kernel may tell of an old
 * disconnection after the bytes of the next host have come. A session ends when another begins. */
static bool receive(void) {
    if (input_used == INPUT_BYTES)
        return false;
    ssize_t count = read(port.fd, input + input_used, INPUT_BYTES - input_used);
    if (count <= 0)
        return false;
    input_used += (size_t)count;
    return true;
}

/* True where bytes went. */
static bool transmit(void) {
    if (output_used == 0)
        return false;
    size_t piece = output_used > 32768 ? 32768 : output_used;
    ssize_t count = write(port.fd, output, piece);
    if (count <= 0)
        return false;
    output_used -= (size_t)count;
    memmove(output, output + count, output_used);
    return true;
}

/* Until nothing moves any more: the port is edge-triggered. It ends, as everything that is sent is bounded by its queue. */
void channel_progress(void) {
    for (bool moved = true; moved;) {
        moved = receive();
        /* A request is taken only where its answer fits: a host that does not read is not listened to. */
        while ((!has_session || channel_has_room()) && take_frame())
            moved = true;
        outbound_fill();
        moved |= transmit();
    }
}

void channel_flush(uint64_t timeout_ns) {
    uint64_t deadline_ns = monotonic_ns() + timeout_ns;
    while (has_session && output_used > 0 && monotonic_ns() < deadline_ns) {
        struct pollfd waiting = {.fd = port.fd, .events = POLLOUT};
        if (!transmit())
            poll(&waiting, 1, 20);
    }
}
