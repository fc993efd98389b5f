#pragma once
#include <stddef.h>
#include <stdint.h>

/* CRC-32 as zlib computes it; start with 0 and pass the last result to go on. */
uint32_t crc32_update(uint32_t crc, const void *data, size_t length);
