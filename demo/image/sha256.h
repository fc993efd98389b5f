/* SHA-256 (FIPS 180-4) of a stream of bytes. */
#ifndef SHA256_H
#define SHA256_H

#include <stddef.h>
#include <stdint.h>

#define SHA256_BYTES 32

struct sha256 {
	uint32_t state[8];
	uint64_t length;
	uint8_t block[64];
};

void sha256_start(struct sha256 *hash);
void sha256_add(struct sha256 *hash, const uint8_t *data, size_t length);

/* The digest so far; the stream may go on afterwards. */
void sha256_digest(const struct sha256 *hash, uint8_t digest[SHA256_BYTES]);

#endif
