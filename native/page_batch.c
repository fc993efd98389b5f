/* Work on many pages at once, for the memory process, which loads this with ctypes (and so without the interpreter's lock).
 *
 * Python does the same for one page at a time: about a microsecond of interpreter and a hand-over of its lock per page, and SHA-256
 * instructions that wait for each other. Measured in docs/protocols/memory-process.md. Callers: architect/silo/page_batch.py. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define PAGE 4096L
#define HASH 32L
#define RETRIES_MAX 100

/* How many of the ascending `pages` follow one another from the first. */
static long run_length(const int64_t *pages, long count)
{
	long length = 1;

	while (length < count && pages[length] == pages[0] + length)
		length++;
	return length;
}

/* Read `pages` of a file one behind the other into `buffer`. 0, or an errno: EIO where the file ends. */
int read_pages(int file, const int64_t *pages, long count, uint8_t *buffer)
{
	for (long at = 0, run; at < count; at += run) {
		long done = 0, size = (run = run_length(pages + at, count - at)) * PAGE;

		while (done < size) {
			ssize_t length = pread(file, buffer + at * PAGE + done, size - done, pages[at] * PAGE + done);

			if (length <= 0 && (length == 0 || errno != EINTR))
				return length ? errno : EIO;
			done += length < 0 ? 0 : length;
		}
	}
	return 0;
}

/* Write `data` to `pages` of a file. 0 or an errno. */
int write_pages(int file, const int64_t *pages, long count, const uint8_t *data)
{
	for (long at = 0, run; at < count; at += run) {
		long done = 0, size = (run = run_length(pages + at, count - at)) * PAGE;

		while (done < size) {
			ssize_t length = pwrite(file, data + at * PAGE + done, size - done, pages[at] * PAGE + done);

			if (length <= 0 && (length == 0 || errno != EINTR))
				return length ? errno : EIO;
			done += length < 0 ? 0 : length;
		}
	}
	return 0;
}

/* Make holes of `pages`. 0 or an errno. */
int punch_pages(int file, const int64_t *pages, long count)
{
	for (long at = 0, run; at < count; at += run) {
		run = run_length(pages + at, count - at);
		while (fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, pages[at] * PAGE, run * PAGE))
			if (errno != EINTR)
				return errno;
	}
	return 0;
}

/* Where QEMU's memory lies: from page `first` on at address `start`. */
struct mapping {
	int64_t first, start;
};

/* Make the ascending `pages` of another process's memory present with `data`, write-protected, through its userfaultfd; who waits for
 * them is woken. `mappings` (ascending) are its memory. A page that exists is left as it is, and exists[i] set. 0 or an errno. */
int install_pages(int userfault, const struct mapping *mappings, long mapping_count, const int64_t *pages, long count,
		  const uint8_t *data, uint8_t *exists)
{
	const struct mapping *last = mappings + mapping_count - 1;
	int retries = 0;

	for (long at = 0, run; at < count;) {
		while (mappings < last && pages[at] >= mappings[1].first)
			mappings++;
		run = run_length(pages + at, count - at);
		if (mappings < last && pages[at] + run > mappings[1].first)
			run = mappings[1].first - pages[at];
		struct uffdio_copy copy = {
			.dst = mappings->start + (pages[at] - mappings->first) * PAGE,
			.src = (uintptr_t)(data + at * PAGE),
			.len = run * PAGE,
			.mode = UFFDIO_COPY_MODE_WP,
		};
		if (!ioctl(userfault, UFFDIO_COPY, &copy))
			at += run;
		else if (copy.copy > 0) /* up to a page that exists, or QEMU's mappings changed: tried again */
			at += copy.copy / PAGE;
		else if (errno == EEXIST)
			exists[at++] = 1;
		else if (errno != EAGAIN || ++retries == RETRIES_MAX)
			return errno;
	}
	return 0;
}

/* Set is_data[i] to whether page i of `buffer` has a byte that is not 0; returns how many have. */
long find_data(const uint8_t *buffer, long count, uint8_t *is_data)
{
	long found = 0;

	for (long i = 0; i < count; i++) {
		const uint8_t *page = buffer + i * PAGE;

		is_data[i] = page[0] || memcmp(page, page + 1, PAGE - 1) != 0;
		found += is_data[i];
	}
	return found;
}

#ifdef __x86_64__
#include <immintrin.h>

#define LANES 16L
#define WIDE __attribute__((target("avx512f,avx512bw"))) static inline
#define ROTATE _mm512_ror_epi32
#define XOR3(a, b, c) _mm512_ternarylogic_epi32(a, b, c, 0x96)
#define CHOOSE(a, b, c) _mm512_ternarylogic_epi32(a, b, c, 0xca)
#define MAJORITY(a, b, c) _mm512_ternarylogic_epi32(a, b, c, 0xe8)

/* FIPS 180-4, 4.2.2 and 5.3.3. */
static const uint32_t round_constants[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
	0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
	0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
	0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
	0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
	0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};
static const uint32_t first_state[8] = {
	0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

/* Rows of 16 words become columns. */
WIDE void transpose(__m512i r[16])
{
	__m512i t[16];

	for (int i = 0; i < 16; i += 2) {
		t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
		t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
	}
	for (int i = 0; i < 16; i += 4) {
		r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
		r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
		r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
		r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
	}
	for (int k = 0; k < 4; k++) {
		__m512i even = _mm512_shuffle_i32x4(r[k], r[4 + k], 0x88), odd = _mm512_shuffle_i32x4(r[k], r[4 + k], 0xdd);
		__m512i even2 = _mm512_shuffle_i32x4(r[8 + k], r[12 + k], 0x88), odd2 = _mm512_shuffle_i32x4(r[8 + k], r[12 + k], 0xdd);

		t[k] = _mm512_shuffle_i32x4(even, even2, 0x88);
		t[4 + k] = _mm512_shuffle_i32x4(odd, odd2, 0x88);
		t[8 + k] = _mm512_shuffle_i32x4(even, even2, 0xdd);
		t[12 + k] = _mm512_shuffle_i32x4(odd, odd2, 0xdd);
	}
	memcpy(r, t, sizeof t);
}

/* One block of 16 messages, word i of all of them in w[i]: FIPS 180-4, 6.2.2, sixteen times side by side. */
WIDE void compress(__m512i s[8], __m512i w[16])
{
	__m512i a = s[0], b = s[1], c = s[2], d = s[3], e = s[4], f = s[5], g = s[6], h = s[7];

	for (int round = 0; round < 64; round += 16) {
#pragma GCC unroll 16
		for (int i = 0; i < 16; i++) {
			if (round) {
				__m512i x = w[(i + 1) & 15], y = w[(i + 14) & 15];
				__m512i small0 = XOR3(ROTATE(x, 7), ROTATE(x, 18), _mm512_srli_epi32(x, 3));
				__m512i small1 = XOR3(ROTATE(y, 17), ROTATE(y, 19), _mm512_srli_epi32(y, 10));

				w[i] = _mm512_add_epi32(_mm512_add_epi32(w[i], w[(i + 9) & 15]), _mm512_add_epi32(small0, small1));
			}
			__m512i t1 = _mm512_add_epi32(_mm512_add_epi32(h, w[i]), _mm512_set1_epi32((int)round_constants[round + i]));
			__m512i big1 = XOR3(ROTATE(e, 6), ROTATE(e, 11), ROTATE(e, 25));
			__m512i big0 = XOR3(ROTATE(a, 2), ROTATE(a, 13), ROTATE(a, 22));

			t1 = _mm512_add_epi32(t1, _mm512_add_epi32(big1, CHOOSE(e, f, g)));
			h = g, g = f, f = e, e = _mm512_add_epi32(d, t1);
			d = c, c = b;
			__m512i t2 = _mm512_add_epi32(big0, MAJORITY(a, b, d));
			b = a, a = _mm512_add_epi32(t1, t2);
		}
	}
	__m512i last[8] = { a, b, c, d, e, f, g, h };
	for (int i = 0; i < 8; i++)
		s[i] = _mm512_add_epi32(s[i], last[i]);
}

/* The hashes of 16 pages; `page[i]` may repeat. */
__attribute__((target("avx512f,avx512bw"))) static void hash_lanes(const uint8_t *const page[LANES], uint8_t out[LANES][HASH])
{
	const __m512i swap = _mm512_broadcast_i32x4(_mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203));
	__m512i state[16], words[16];

	for (int i = 0; i < 8; i++)
		state[i] = _mm512_set1_epi32((int)first_state[i]);
	for (long at = 0; at < PAGE; at += 64) {
		for (int lane = 0; lane < LANES; lane++)
			words[lane] = _mm512_shuffle_epi8(_mm512_loadu_si512(page[lane] + at), swap);
		transpose(words);
		compress(state, words);
	}
	for (int i = 0; i < 16; i++) /* the padding: a one, zeros, the length in bits */
		words[i] = _mm512_set1_epi32(i == 0 ? (int)0x80000000 : i == 15 ? PAGE * 8 : 0);
	compress(state, words);
	for (int i = 8; i < 16; i++)
		state[i] = _mm512_setzero_si512();
	transpose(state);
	for (int lane = 0; lane < LANES; lane++)
		_mm256_storeu_si256((__m256i *)out[lane], _mm512_castsi512_si256(_mm512_shuffle_epi8(state[lane], swap)));
}

/* Fewer pages than this are hashed faster one by one, with the processor's SHA instructions. */
#define WORTHWHILE 6L

/* The SHA-256 of each page of `data`, one behind the other; returns how many pages from the first were done: the caller does the rest. */
long hash_pages(const uint8_t *data, long count, uint8_t *hashes)
{
	uint8_t out[LANES][HASH];
	long done = 0;

	if (!__builtin_cpu_supports("avx512bw"))
		return 0;
	while (count - done >= WORTHWHILE) {
		const uint8_t *page[LANES];
		long lanes = count - done < LANES ? count - done : LANES;

		for (long lane = 0; lane < LANES; lane++)
			page[lane] = data + (done + (lane < lanes ? lane : 0)) * PAGE;
		hash_lanes(page, out);
		memcpy(hashes + done * HASH, out, lanes * HASH);
		done += lanes;
	}
	return done;
}
#else
long hash_pages(const uint8_t *data, long count, uint8_t *hashes)
{
	(void)data, (void)count, (void)hashes;
	return 0;
}
#endif
