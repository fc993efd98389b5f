/* What `init --layout` prints, so that a test can compare the C structs with the Python ones. */
#include "layout.h"

#include <stdio.h>

#include "protocol.h"

#define SIZE(type) printf("size %s %zu\n", #type, sizeof(struct type))
#define FIELD(type, field) \
    printf("offset %s.%s %zu %zu\n", #type, #field, offsetof(struct type, field), sizeof(((struct type *)0)->field))
#define VALUE(name) printf("value %s %llu\n", #name, (unsigned long long)(name))

static void print_structs(void) {
    SIZE(frame_header);
    FIELD(frame_header, magic);
    FIELD(frame_header, length);
    FIELD(frame_header, session);
    FIELD(frame_header, type);
    FIELD(frame_header, flags);
    FIELD(frame_header, reserved);
    FIELD(frame_header, stream);
    FIELD(frame_header, seq);
    FIELD(frame_header, crc);
    SIZE(hello_payload);
    FIELD(hello_payload, version);
    FIELD(hello_payload, reserved);
    FIELD(hello_payload, log_position);
    SIZE(ready_payload);
    FIELD(ready_payload, version);
    FIELD(ready_payload, state);
    FIELD(ready_payload, log_acked);
    FIELD(ready_payload, log_next);
    FIELD(ready_payload, uptime_ns);
    FIELD(ready_payload, exit_code);
    FIELD(ready_payload, exec_count);
    SIZE(configure_payload);
    FIELD(configure_payload, realtime_ns);
    FIELD(configure_payload, address);
    FIELD(configure_payload, gateway);
    FIELD(configure_payload, mac);
    FIELD(configure_payload, gateway_mac);
    FIELD(configure_payload, mtu);
    SIZE(process_payload);
    FIELD(process_payload, uid);
    FIELD(process_payload, gid);
    FIELD(process_payload, group_count);
    FIELD(process_payload, arg_count);
    FIELD(process_payload, env_count);
    FIELD(process_payload, tty);
    FIELD(process_payload, rows);
    FIELD(process_payload, columns);
    SIZE(signal_payload);
    FIELD(signal_payload, signal);
    SIZE(clock_payload);
    FIELD(clock_payload, offset_ns);
    SIZE(hook_payload);
    FIELD(hook_payload, hook);
    FIELD(hook_payload, timeout_ms);
    SIZE(freeze_payload);
    FIELD(freeze_payload, frozen);
    FIELD(freeze_payload, timeout_ms);
    SIZE(resize_payload);
    FIELD(resize_payload, rows);
    FIELD(resize_payload, columns);
    SIZE(attach_payload);
    FIELD(attach_payload, output_position);
    SIZE(input_ack_payload);
    FIELD(input_ack_payload, received);
    SIZE(answer_payload);
    FIELD(answer_payload, status);
    SIZE(pong_payload);
    FIELD(pong_payload, realtime_ns);
    FIELD(pong_payload, monotonic_ns);
    FIELD(pong_payload, slewing_ns);
    SIZE(log_payload);
    FIELD(log_payload, realtime_ns);
    SIZE(exit_payload);
    FIELD(exit_payload, code);
}

static void print_frame_types(void) {
    VALUE(FRAME_HELLO);
    VALUE(FRAME_CONFIGURE);
    VALUE(FRAME_START);
    VALUE(FRAME_SIGNAL);
    VALUE(FRAME_CLOCK);
    VALUE(FRAME_HOOK);
    VALUE(FRAME_FREEZE);
    VALUE(FRAME_PING);
    VALUE(FRAME_POWEROFF);
    VALUE(FRAME_LOG_ACK);
    VALUE(FRAME_EXEC_START);
    VALUE(FRAME_EXEC_ATTACH);
    VALUE(FRAME_EXEC_INPUT);
    VALUE(FRAME_EXEC_RESIZE);
    VALUE(FRAME_EXEC_OUTPUT_ACK);
    VALUE(FRAME_EXEC_CLOSE);
    VALUE(FRAME_READY);
    VALUE(FRAME_ANSWER);
    VALUE(FRAME_PONG);
    VALUE(FRAME_LOG);
    VALUE(FRAME_EXIT);
    VALUE(FRAME_EXEC_OUTPUT);
    VALUE(FRAME_EXEC_INPUT_ACK);
    VALUE(FRAME_EXEC_EXIT);
}

void print_layout(void) {
    print_structs();
    print_frame_types();
    VALUE(PROTOCOL_VERSION);
    VALUE(FRAME_MAGIC);
    VALUE(PAYLOAD_BYTES_MAX);
    VALUE(RECORD_BYTES_MAX);
    VALUE(EXEC_INPUT_BYTES_MAX);
    VALUE(EXEC_SESSIONS_MAX);
    VALUE(POSITION_OF_GUEST);
    VALUE(FLAG_END_OF_INPUT);
}
