/* The guest channel's frames, shared word for word with architect/drafter/guest_protocol.py.
 *
 * All integers are little-endian. The prose is in docs/protocols/guest-channel.md; `init --layout` prints every size and
 * offset, and a test compares them with the Python side. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define PROTOCOL_VERSION 1u
#define PORT_NAME "architect"

#define FRAME_MAGIC 0x31435241u /* "ARC1" */
#define PAYLOAD_BYTES_MAX (64u * 1024u)
#define RECORD_BYTES_MAX (16u * 1024u)
#define LOG_BYTES_MAX (1024u * 1024u)
#define EXEC_OUTPUT_BYTES_MAX (256u * 1024u)
#define EXEC_INPUT_BYTES_MAX (64u * 1024u)
#define EXEC_SESSIONS_MAX 32u
#define POSITION_OF_GUEST UINT64_MAX

enum frame_type {
    /* host to guest */
    FRAME_HELLO = 1,
    FRAME_CONFIGURE = 2,
    FRAME_START = 3,
    FRAME_SIGNAL = 4,
    FRAME_CLOCK = 5,
    FRAME_HOOK = 6,
    FRAME_FREEZE = 7,
    FRAME_PING = 8,
    FRAME_POWEROFF = 9,
    FRAME_LOG_ACK = 10,
    FRAME_EXEC_CLOSE = 11,
    FRAME_EXEC_START = 12,
    FRAME_EXEC_ATTACH = 13,
    FRAME_EXEC_INPUT = 14,
    FRAME_EXEC_RESIZE = 15,
    FRAME_EXEC_OUTPUT_ACK = 16,
    /* guest to host */
    FRAME_READY = 64,
    FRAME_ANSWER = 65,
    FRAME_PONG = 66,
    FRAME_LOG = 67,
    FRAME_EXIT = 68,
    FRAME_EXEC_OUTPUT = 69,
    FRAME_EXEC_INPUT_ACK = 70,
    FRAME_EXEC_EXIT = 71,
};

enum stream { STREAM_STDOUT = 1, STREAM_STDERR = 2, STREAM_SYSTEM = 3 };
enum guest_state { GUEST_BOOTED = 0, GUEST_CONFIGURED = 1, GUEST_RUNNING = 2, GUEST_EXITED = 3 };
enum hook { HOOK_BEFORE_SUSPEND = 1, HOOK_AFTER_RESUME = 2, HOOK_AFTER_RESTORE = 3 };
enum { FLAG_END_OF_INPUT = 1 };

/* In front of every payload. `crc` is CRC-32 (the zlib one) over the header with crc = 0 and the payload. */
struct frame_header {
    uint32_t magic;
    uint32_t length;
    uint32_t session;
    uint8_t type;
    uint8_t flags;
    uint16_t reserved;
    uint32_t stream;
    uint64_t seq;
    uint32_t crc;
} __attribute__((packed));

struct hello_payload {
    uint32_t version;
    uint32_t reserved;
    uint64_t log_position;
} __attribute__((packed));

/* Followed by exec_count times u32: the ids of the exec sessions that the guest holds. */
struct ready_payload {
    uint32_t version;
    uint32_t state;
    uint64_t log_acked;
    uint64_t log_next;
    uint64_t uptime_ns;
    uint32_t exit_code;
    uint32_t exec_count;
} __attribute__((packed));

/* Followed by five byte strings (u32 length, bytes): host name, machine id, hosts file, resolv.conf, entropy. */
struct configure_payload {
    uint64_t realtime_ns;
    uint8_t address[4];
    uint8_t gateway[4];
    uint8_t mac[6];
    uint8_t gateway_mac[6];
    uint32_t mtu;
} __attribute__((packed));

/* Followed by group_count times u32, then byte strings: cwd, arg_count arguments, env_count variables. */
struct process_payload {
    uint32_t uid;
    uint32_t gid;
    uint16_t group_count;
    uint16_t arg_count;
    uint16_t env_count;
    uint16_t tty;
    uint16_t rows;
    uint16_t columns;
} __attribute__((packed));

struct signal_payload {
    uint32_t signal;
} __attribute__((packed));

struct clock_payload {
    int64_t offset_ns;
} __attribute__((packed));

struct hook_payload {
    uint32_t hook;
    uint32_t timeout_ms;
} __attribute__((packed));

struct freeze_payload {
    uint32_t frozen;
    uint32_t timeout_ms;
} __attribute__((packed));

struct resize_payload {
    uint16_t rows;
    uint16_t columns;
} __attribute__((packed));

/* The last output record that the host has, POSITION_OF_GUEST for "what I last acknowledged". */
struct attach_payload {
    uint64_t output_position;
} __attribute__((packed));

/* The header's seq counts the bytes that the process has taken; `received` what the guest holds, those included. */
struct input_ack_payload {
    uint64_t received;
} __attribute__((packed));

/* Followed by a text for people, empty where status is 0. */
struct answer_payload {
    uint32_t status;
} __attribute__((packed));

struct pong_payload {
    uint64_t realtime_ns;
    uint64_t monotonic_ns;
    int64_t slewing_ns;
} __attribute__((packed));

/* Followed by the bytes that the process wrote. */
struct log_payload {
    uint64_t realtime_ns;
} __attribute__((packed));

struct exit_payload {
    uint32_t code;
} __attribute__((packed));
