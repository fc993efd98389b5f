#pragma once
#include <stdint.h>

/* The home directory that /etc/passwd gives the user, "/" where it gives none. Valid until the next call. Static glibc has no
 * name service to ask, and the image's is the image's business. */
const char *home_of(uint32_t uid);
