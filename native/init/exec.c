#include "exec.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cgroup.h"
#include "channel.h"
#include "outlet.h"
#include "terminal.h"
#include "workload.h"

#define END_OF_FILE_KEY 4

struct exec {
    struct event_source input; /* first: its handler casts */
    struct outlet output, error;
    struct record_queue queue;
    uint32_t id;
    pid_t pid;
    bool used, tty, attached, running, closing, finished, exit_unsent, input_ended, ack_unsent;
    uint32_t exit_code;
    uint64_t input_received, input_taken;
    size_t input_held;
    uint8_t *input_bytes;
};

static struct exec sessions[EXEC_SESSIONS_MAX];

static struct exec *find(uint32_t id) {
    for (size_t i = 0; i < EXEC_SESSIONS_MAX; i++)
        if (sessions[i].used && !sessions[i].closing && sessions[i].id == id)
            return &sessions[i];
    return NULL;
}

static void release(struct exec *exec) {
    event_close(&exec->input);
    event_close(&exec->output.source);
    event_close(&exec->error.source);
    queue_free(&exec->queue);
    free(exec->input_bytes);
    memset(exec, 0, sizeof *exec);
}

/* A free place; for want of one, that of a finished session that nobody is attached to. */
static struct exec *find_place(void) {
    for (size_t i = 0; i < EXEC_SESSIONS_MAX; i++)
        if (!sessions[i].used)
            return &sessions[i];
    for (size_t i = 0; i < EXEC_SESSIONS_MAX; i++)
        if (!sessions[i].running && !sessions[i].attached) {
            release(&sessions[i]);
            return &sessions[i];
        }
    return NULL;
}

static void close_input(struct exec *exec) {
    exec->input_taken += exec->input_held;
    exec->input_held = 0;
    exec->ack_unsent = true;
    if (!exec->tty)
        event_close(&exec->input);
    else
        event_unwatch(&exec->input);
}

/* Hands on what is held. What a process that reads no more will not take counts as taken. */
static void write_input(struct exec *exec) {
    if (exec->input.fd < 0) {
        close_input(exec);
        return;
    }
    while (exec->input_held > 0) {
        ssize_t count = write(exec->input.fd, exec->input_bytes, exec->input_held);
        if (count < 0 && (errno == EAGAIN || errno == EINTR)) {
            event_watch(&exec->input, EPOLLOUT);
            return;
        }
        if (count <= 0) {
            close_input(exec);
            return;
        }
        exec->input_held -= (size_t)count;
        exec->input_taken += (uint64_t)count;
        exec->ack_unsent = true;
        memmove(exec->input_bytes, exec->input_bytes + count, exec->input_held);
    }
    event_unwatch(&exec->input);
    if (exec->input_ended) {
        const uint8_t key = END_OF_FILE_KEY;
        if (exec->tty && write(exec->input.fd, &key, 1) < 0)
            exec->ack_unsent = true;
        close_input(exec);
    }
}

static void input_writable(struct event_source *source, uint32_t events) {
    struct exec *exec = (struct exec *)source;
    if (events & EPOLLERR)
        close_input(exec);
    else
        write_input(exec);
}

static int spawn_with_pipes(struct exec *exec, const struct process_config *config) {
    int input[2], output[2], error[2];
    if (!inlet_pipe(input) || !outlet_pipe(output) || !outlet_pipe(error))
        return errno;
    struct process_files files = {.input = input[0], .output = output[1], .error = error[1]};
    exec->pid = process_spawn(config, &files, CGROUP_EXEC);
    int cause = exec->pid < 0 ? errno : 0;
    close(input[0]);
    close(output[1]);
    close(error[1]);
    exec->input.fd = input[1];
    outlet_open(&exec->output, output[0], &exec->queue, STREAM_STDOUT);
    outlet_open(&exec->error, error[0], &exec->queue, STREAM_STDERR);
    return cause;
}

static int spawn_with_terminal(struct exec *exec, const struct process_config *config) {
    int slave, master = terminal_open(&slave, config->rows, config->columns, config->uid);
    if (master < 0)
        return errno;
    struct process_files files = {.input = slave, .output = slave, .error = slave};
    exec->pid = process_spawn(config, &files, CGROUP_EXEC);
    int cause = exec->pid < 0 ? errno : 0;
    close(slave);
    exec->input.fd = dup_closing_on_exec(master);
    outlet_open(&exec->output, master, &exec->queue, STREAM_STDOUT);
    return cause;
}

int exec_start(uint32_t id, const struct process_config *config) {
    if (guest_state != GUEST_RUNNING)
        return ESRCH;
    if (find(id) != NULL)
        return EEXIST;
    struct exec *exec = find_place();
    if (exec == NULL)
        return EAGAIN;
    *exec = (struct exec){.used = true, .id = id, .tty = config->tty, .attached = true, .running = true};
    exec->input = (struct event_source){.fd = -1, .handle = input_writable};
    exec->output.source.fd = exec->error.source.fd = -1;
    queue_init(&exec->queue, EXEC_OUTPUT_BYTES_MAX);
    exec->input_bytes = malloc(EXEC_INPUT_BYTES_MAX);
    int cause = exec->input_bytes == NULL ? ENOMEM : 0;
    if (cause == 0)
        cause = config->tty ? spawn_with_terminal(exec, config) : spawn_with_pipes(exec, config);
    if (cause != 0)
        release(exec);
    return cause;
}

int exec_attach(uint32_t id, uint64_t output_position) {
    struct exec *exec = find(id);
    if (exec == NULL)
        return ESRCH;
    queue_rewind(&exec->queue, output_position == POSITION_OF_GUEST ? exec->queue.acked_seq : output_position);
    exec->attached = exec->ack_unsent = true;
    exec->exit_unsent = exec->finished;
    return 0;
}

int exec_signal(uint32_t id, int number) {
    struct exec *exec = find(id);
    if (exec == NULL || !exec->running)
        return ESRCH;
    return kill(-exec->pid, number) == 0 ? 0 : errno;
}

int exec_resize(uint32_t id, uint16_t rows, uint16_t columns) {
    struct exec *exec = find(id);
    if (exec == NULL)
        return ESRCH;
    return exec->tty ? terminal_resize(exec->input.fd, rows, columns) : ENOTTY;
}

int exec_close(uint32_t id) {
    struct exec *exec = find(id);
    if (exec == NULL)
        return ESRCH;
    exec->closing = true;
    if (exec->running)
        kill(-exec->pid, SIGKILL);
    else
        release(exec);
    return 0;
}

void exec_input(uint32_t id, uint64_t position, const uint8_t *data, size_t length, bool end) {
    struct exec *exec = find(id);
    /* A gap cannot be filled later by this frame: the host sends again from what was acknowledged. */
    if (exec == NULL || exec->input_ended || position > exec->input_received)
        return;
    uint64_t known = exec->input_received - position;
    if (known > length)
        return;
    size_t count = length - (size_t)known, space = EXEC_INPUT_BYTES_MAX - exec->input_held;
    if (count > space)
        count = space, end = false;
    memcpy(exec->input_bytes + exec->input_held, data + known, count);
    exec->input_held += count;
    exec->input_received += count;
    exec->input_ended = end;
    write_input(exec);
}

void exec_output_ack(uint32_t id, uint64_t seq) {
    struct exec *exec = find(id);
    if (exec != NULL)
        queue_ack(&exec->queue, seq);
}

bool exec_reaped(pid_t pid, int status) {
    for (size_t i = 0; i < EXEC_SESSIONS_MAX; i++) {
        struct exec *exec = &sessions[i];
        if (!exec->used || !exec->running || exec->pid != pid)
            continue;
        exec->running = false;
        exec->exit_code = process_exit_code(status);
        if (exec->closing)
            release(exec);
        return true;
    }
    return false;
}

void exec_new_session(void) {
    for (size_t i = 0; i < EXEC_SESSIONS_MAX; i++)
        sessions[i].attached = false;
}

/* The process has gone: what it wrote is read to the end, but a child of it that keeps the pipe open is not waited for. */
static void finish(struct exec *exec) {
    if (exec->running || exec->finished || !outlet_drain(&exec->output) || !outlet_drain(&exec->error))
        return;
    event_close(&exec->output.source);
    event_close(&exec->error.source);
    event_close(&exec->input);
    exec->finished = exec->exit_unsent = true;
}

static void send_records(struct exec *exec) {
    struct record *record;
    while ((record = exec->queue.unsent) != NULL && channel_has_room()) {
        struct frame_header frame = {
            .type = FRAME_EXEC_OUTPUT, .flags = record->stream, .stream = exec->id, .seq = record->seq};
        channel_send(&frame, NULL, 0, record->data, record->length);
        exec->queue.unsent = record->next;
    }
}

static void send_input_ack(struct exec *exec) {
    struct frame_header frame = {.type = FRAME_EXEC_INPUT_ACK, .stream = exec->id, .seq = exec->input_taken};
    struct input_ack_payload payload = {.received = exec->input_received};
    channel_send(&frame, &payload, sizeof payload, NULL, 0);
    exec->ack_unsent = false;
}

static void send_exit(struct exec *exec) {
    struct frame_header frame = {.type = FRAME_EXEC_EXIT, .stream = exec->id};
    struct exit_payload payload = {.code = exec->exit_code};
    channel_send(&frame, &payload, sizeof payload, NULL, 0);
    exec->exit_unsent = false;
}

void exec_send(void) {
    static size_t turn;
    turn++; /* A busy session does not keep the others from their turn. */
    for (size_t i = 0; i < EXEC_SESSIONS_MAX; i++) {
        struct exec *exec = &sessions[(turn + i) % EXEC_SESSIONS_MAX];
        if (!exec->used || exec->closing)
            continue;
        outlet_resume(&exec->output);
        outlet_resume(&exec->error);
        finish(exec);
        if (!exec->attached)
            continue;
        send_records(exec);
        if (exec->ack_unsent && channel_has_room())
            send_input_ack(exec);
        if (exec->exit_unsent && exec->queue.unsent == NULL && channel_has_room())
            send_exit(exec);
    }
}

uint32_t exec_ids(uint32_t *ids, uint32_t ids_max) {
    uint32_t count = 0;
    for (size_t i = 0; i < EXEC_SESSIONS_MAX && count < ids_max; i++)
        if (sessions[i].used && !sessions[i].closing)
            ids[count++] = sessions[i].id;
    return count;
}
