/* See sha256.h. The constants are the first 32 bits of the fractional parts of the cube roots (rounds) and the square roots
 * (start) of the first primes, as in FIPS 180-4, 4.2.2 and 5.3.3. */
#include "sha256.h"

#include <string.h>

static const uint32_t ROUNDS[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};
static const uint32_t START[8] = {
	0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

static uint32_t turn(uint32_t value, int count)
{
	return value >> count | value << (32 - count);
}

/* One round; the caller turns the roles of the eight words in place of moving them. */
#define ROUND(a, b, c, d, e, f, g, h, i)                                                                        \
	do {                                                                                                   \
		uint32_t one = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + ROUNDS[i] + w[i]; \
		d += one;                                                                                      \
		h = one + (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));              \
	} while (0)

static void add_block(uint32_t state[8], const uint8_t *block)
{
	uint32_t w[64];
	uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
	for (int i = 0; i < 16; i++)
		w[i] = (uint32_t)block[4 * i] << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 | block[4 * i + 3];
	for (int i = 16; i < 64; i++) {
		uint32_t x = w[i - 15], y = w[i - 2];
		w[i] = w[i - 16] + w[i - 7] + (turn(x, 7) ^ turn(x, 18) ^ x >> 3) + (turn(y, 17) ^ turn(y, 19) ^ y >> 10);
	}
	for (int i = 0; i < 64; i += 8) {
		ROUND(a, b, c, d, e, f, g, h, i);
		ROUND(h, a, b, c, d, e, f, g, i + 1);
		ROUND(g, h, a, b, c, d, e, f, i + 2);
		ROUND(f, g, h, a, b, c, d, e, i + 3);
		ROUND(e, f, g, h, a, b, c, d, i + 4);
		ROUND(d, e, f, g, h, a, b, c, i + 5);
		ROUND(c, d, e, f, g, h, a, b, i + 6);
		ROUND(b, c, d, e, f, g, h, a, i + 7);
	}
	const uint32_t words[8] = {a, b, c, d, e, f, g, h};
	for (int i = 0; i < 8; i++)
		state[i] += words[i];
}

void sha256_start(struct sha256 *hash)
{
	memcpy(hash->state, START, sizeof START);
	hash->length = 0;
}

void sha256_add(struct sha256 *hash, const uint8_t *data, size_t length)
{
	while (length > 0) {
		size_t filled = hash->length % 64, room = 64 - filled, take = length < room ? length : room;
		memcpy(hash->block + filled, data, take);
		hash->length += take;
		data += take;
		length -= take;
		if (filled + take == 64)
			add_block(hash->state, hash->block);
	}
}

void sha256_digest(const struct sha256 *hash, uint8_t digest[SHA256_BYTES])
{
	struct sha256 end = *hash;
	uint8_t padding[128] = {0x80}, bits[8];
	size_t filled = hash->length % 64;
	for (int i = 0; i < 8; i++)
		bits[i] = (uint8_t)(hash->length * 8 >> (56 - 8 * i));
	sha256_add(&end, padding, (filled < 56 ? 56 : 120) - filled);
	sha256_add(&end, bits, 8);
	for (int i = 0; i < SHA256_BYTES; i++)
		digest[i] = (uint8_t)(end.state[i / 4] >> (24 - 8 * (i % 4)));
}
