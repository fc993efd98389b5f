#pragma once
#include <stddef.h>
#include <stdint.h>

/* Credits the bytes to the kernel's generator and makes it use them at once: two resumes of one template must differ. */
void entropy_seed(const uint8_t *bytes, size_t length);
