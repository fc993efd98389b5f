#include "dispatch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "channel.h"
#include "clock.h"
#include "configure.h"
#include "cursor.h"
#include "event.h"
#include "exec.h"
#include "freeze.h"
#include "hook.h"
#include "log.h"
#include "outbound.h"
#include "power.h"
#include "request.h"
#include "workload.h"

static void send_ready(void) {
    uint32_t ids[EXEC_SESSIONS_MAX];
    struct ready_payload ready = {.version = PROTOCOL_VERSION,
                                  .state = guest_state,
                                  .log_acked = log_queue.acked_seq,
                                  .log_next = log_queue.next_seq,
                                  .uptime_ns = monotonic_ns(),
                                  .exit_code = workload_exit_code(),
                                  .exec_count = exec_ids(ids, EXEC_SESSIONS_MAX)};
    struct frame_header frame = {.type = FRAME_READY};
    channel_send(&frame, &ready, sizeof ready, ids, ready.exec_count * sizeof *ids);
}

/* HELLO begins a session; one that is repeated within it only asks for READY again. */
static void hello(const struct frame_header *header, struct cursor *cursor) {
    struct hello_payload payload;
    cursor_copy(cursor, &payload, sizeof payload);
    if (cursor->bad)
        return;
    if (channel_begin_session(header->session) && payload.version == PROTOCOL_VERSION) {
        /* A host that knows more than there is saw what this guest, restored, has not written yet. */
        bool is_known = payload.log_position < log_queue.next_seq;
        queue_rewind(&log_queue, is_known ? payload.log_position : log_queue.acked_seq);
        workload_new_session();
        exec_new_session();
    }
    send_ready();
}

static void answer(uint64_t id, int cause) {
    request_answer(id, cause, "%s", cause ? strerror(cause) : "");
}

static int start(uint32_t exec_id, bool is_exec, struct cursor *cursor) {
    struct process_config config;
    if (!process_parse(cursor, &config))
        return EBADMSG;
    int cause;
    if (is_exec)
        cause = exec_start(exec_id, &config);
    else
        cause = guest_state == GUEST_CONFIGURED ? workload_start(&config) : guest_state == GUEST_BOOTED ? EINVAL : EALREADY;
    process_free(&config);
    return cause;
}

static int signal_process(uint32_t exec_id, struct cursor *cursor) {
    struct signal_payload payload;
    cursor_copy(cursor, &payload, sizeof payload);
    if (cursor->bad)
        return EBADMSG;
    return exec_id == 0 ? workload_signal((int)payload.signal) : exec_signal(exec_id, (int)payload.signal);
}

static int adjust_clock(struct cursor *cursor) {
    struct clock_payload payload;
    cursor_copy(cursor, &payload, sizeof payload);
    if (cursor->bad)
        return EBADMSG;
    clock_adjust(payload.offset_ns);
    return 0;
}

static void freeze(uint64_t id, struct cursor *cursor) {
    struct freeze_payload payload;
    cursor_copy(cursor, &payload, sizeof payload);
    if (cursor->bad)
        answer(id, EBADMSG);
    else
        freeze_run(id, payload.frozen != 0, payload.timeout_ms);
}

static int attach(uint32_t exec_id, struct cursor *cursor) {
    struct attach_payload payload;
    cursor_copy(cursor, &payload, sizeof payload);
    return cursor->bad ? EBADMSG : exec_attach(exec_id, payload.output_position);
}

static int resize(uint32_t exec_id, struct cursor *cursor) {
    struct resize_payload payload;
    cursor_copy(cursor, &payload, sizeof payload);
    return cursor->bad ? EBADMSG : exec_resize(exec_id, payload.rows, payload.columns);
}

static void run_hook(uint64_t id, struct cursor *cursor) {
    struct hook_payload payload;
    cursor_copy(cursor, &payload, sizeof payload);
    if (cursor->bad)
        answer(id, EBADMSG);
    else
        hook_run(id, payload.hook, payload.timeout_ms);
}

static void pong(uint64_t id) {
    struct frame_header frame = {.type = FRAME_PONG, .seq = id};
    struct pong_payload payload = {
        .realtime_ns = realtime_ns(), .monotonic_ns = monotonic_ns(), .slewing_ns = clock_slewing_ns()};
    channel_send(&frame, &payload, sizeof payload, NULL, 0);
}

static void switch_off(uint64_t id) __attribute__((noreturn));
static void switch_off(uint64_t id) {
    answer(id, 0);
    outbound_fill();
    channel_flush(500000000u);
    power_off();
}

/* Frames with a request id in `seq`, each done once. */
static void handle_request(const struct frame_header *header, const uint8_t *payload) {
    struct cursor cursor = cursor_over(payload, header->length);
    uint64_t id = header->seq;
    if (!request_is_new(id))
        return;
    switch (header->type) {
    case FRAME_CONFIGURE: configure(id, payload, header->length); break;
    case FRAME_START: answer(id, start(0, false, &cursor)); break;
    case FRAME_EXEC_START: answer(id, start(header->stream, true, &cursor)); break;
    case FRAME_SIGNAL: answer(id, signal_process(header->stream, &cursor)); break;
    case FRAME_CLOCK: answer(id, adjust_clock(&cursor)); break;
    case FRAME_HOOK: run_hook(id, &cursor); break;
    case FRAME_FREEZE: freeze(id, &cursor); break;
    case FRAME_EXEC_ATTACH: answer(id, attach(header->stream, &cursor)); break;
    case FRAME_EXEC_RESIZE: answer(id, resize(header->stream, &cursor)); break;
    case FRAME_EXEC_CLOSE: answer(id, exec_close(header->stream)); break;
    case FRAME_POWEROFF: switch_off(id);
    default: answer(id, EOPNOTSUPP); break;
    }
}

void dispatch(const struct frame_header *header, const uint8_t *payload) {
    struct cursor cursor = cursor_over(payload, header->length);
    switch (header->type) {
    case FRAME_HELLO: hello(header, &cursor); break;
    case FRAME_PING: pong(header->seq); break;
    case FRAME_LOG_ACK: queue_ack(&log_queue, header->seq); break;
    case FRAME_EXEC_OUTPUT_ACK: exec_output_ack(header->stream, header->seq); break;
    case FRAME_EXEC_INPUT:
        exec_input(header->stream, header->seq, payload, header->length, header->flags & FLAG_END_OF_INPUT);
        break;
    default: handle_request(header, payload); break;
    }
}
