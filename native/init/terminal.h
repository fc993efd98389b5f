#pragma once
#include <stdint.h>

/* A new pseudo terminal owned by `uid`: its master, not blocking, or -1 with errno; its slave in `*slave`. Both close on exec. */
int terminal_open(int *slave, uint16_t rows, uint16_t columns, uint32_t uid);

/* 0, or an errno. */
int terminal_resize(int master, uint16_t rows, uint16_t columns);
int dup_closing_on_exec(int fd);
