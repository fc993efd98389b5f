#pragma once
#include <stddef.h>
#include <stdint.h>

/* Handles CONFIGURE: seeds the generator, sets the date, takes the disk as root (the first time), names and network. Said again
 * to a running guest it gives a clone its own identity; then the date is not touched. Answers request `id`. */
void configure(uint64_t id, const uint8_t *payload, size_t length);
