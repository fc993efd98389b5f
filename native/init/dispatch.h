#pragma once
#include <stdint.h>

#include "protocol.h"

/* Acts on one whole frame of this session. Whatever it contains, PID 1 goes on. */
void dispatch(const struct frame_header *header, const uint8_t *payload);
