/* Starting a process as an OCI runtime would: user, groups, directory, environment, PATH lookup, own session, own cgroup. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "cursor.h"

#define GROUPS_MAX 1024
#define EXIT_NOT_EXECUTABLE 126
#define EXIT_NOT_FOUND 127

struct process_config {
    uint32_t uid, gid;
    uint32_t *groups;
    uint16_t group_count;
    bool tty;
    uint16_t rows, columns;
    char *cwd;
    char **args; /* NULL at the end */
    char **env;
};

/* The three file descriptors that become 0, 1 and 2; for a terminal all three are its slave side. */
struct process_files {
    int input, output, error;
};

/* Reads a process_payload. False, and nothing to free, where it is malformed or has no argument. */
bool process_parse(struct cursor *cursor, struct process_config *config);
void process_free(struct process_config *config);

/* Forks and executes in `cgroup`. Closes none of `files`. Returns the pid, or -1 with errno. A program that cannot be executed
 * makes the child say so on its standard error and exit with 127 or 126. */
pid_t process_spawn(const struct process_config *config, const struct process_files *files, const char *cgroup);

/* 0..255, or 128 + signal. */
uint32_t process_exit_code(int status);
