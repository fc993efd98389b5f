/* Disk verifier: writes blocks of a file, flushes them, reads them back past the page cache, and checks every one.
 *
 * A block that a move, a snapshot or a restore loses or takes from an earlier time is found when it is read next: before it is
 * written again, or by the sweep, which reads all blocks in turn. Reads use O_DIRECT where the file system has it (tmpfs has not:
 * then the cache is dropped before each read). Every second it prints one line:
 *
 *   disk-verify: seconds=3 blocks=4096 written=512 flushed=64 verified=1024 sweeps=0 direct=1 errors=0
 *
 * and at the first bad block, with exit status 1:
 *
 *   disk-verify: FAILED block=17 verdict=stale expected_version=9 found_version=8 found_block=17
 *
 * An error of the disk itself is `disk-verify: FAILED pwrite block=17: Input/output error`, exit status 1.
 * Options: --path /disk-verify.dat; --size-mib 16; --rate-mib 1 (written per second); --sweep-mib 2 (read per second);
 * --flush-every 8 (writes per flush); --fsync 0 (1: fsync in place of fdatasync); --seconds 0 (0: until it is killed).
 */
#define _GNU_SOURCE
#include "pattern.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define USAGE \
	"[--path FILE] [--size-mib N] [--rate-mib N] [--sweep-mib N] [--flush-every N] [--fsync N] [--seconds N] [--seed N]"

struct disk {
	int writer, reader, is_direct, use_fsync;
	uint64_t *block;
	uint32_t *versions;
	uint64_t count, written, unflushed, flush_every, flushed, verified, sweeps, swept, random;
};

static void fail(const char *what, uint64_t number)
{
	printf("disk-verify: FAILED %s block=%llu: %s\n", what, (unsigned long long)number, strerror(errno));
	fflush(stdout);
	exit(1);
}

static void flush(struct disk *disk)
{
	if (disk->unflushed == 0)
		return;
	if ((disk->use_fsync ? fsync(disk->writer) : fdatasync(disk->writer)) < 0)
		fail(disk->use_fsync ? "fsync" : "fdatasync", disk->count);
	disk->unflushed = 0;
	disk->flushed++;
}

static void write_block(struct disk *disk, uint64_t number)
{
	pattern_fill(disk->block, number, disk->versions[number]);
	if (pwrite(disk->writer, disk->block, BLOCK_BYTES, (off_t)(number * BLOCK_BYTES)) != BLOCK_BYTES)
		fail("pwrite", number);
	if (++disk->unflushed >= disk->flush_every)
		flush(disk);
}

static void verify(struct disk *disk, uint64_t number)
{
	off_t offset = (off_t)(number * BLOCK_BYTES);
	if (!disk->is_direct) {
		flush(disk);
		posix_fadvise(disk->reader, offset, BLOCK_BYTES, POSIX_FADV_DONTNEED);
	}
	memset(disk->block, 0xee, BLOCK_BYTES);
	if (pread(disk->reader, disk->block, BLOCK_BYTES, offset) != BLOCK_BYTES)
		fail("pread", number);
	disk->verified++;
	enum verdict verdict = pattern_check(disk->block, number, disk->versions[number]);
	if (verdict == BLOCK_GOOD)
		return;
	printf("disk-verify: FAILED block=%llu verdict=%s expected_version=%u found_version=%llu found_block=%llu\n",
	       (unsigned long long)number, verdict_name(verdict), disk->versions[number],
	       (unsigned long long)disk->block[1], (unsigned long long)disk->block[0]);
	fflush(stdout);
	exit(1);
}

static void sweep(struct disk *disk)
{
	verify(disk, disk->swept);
	if (++disk->swept == disk->count) {
		disk->swept = 0;
		disk->sweeps++;
	}
}

static void start(struct disk *disk, int argc, char **argv)
{
	const char *path = text_option(argc, argv, "--path", "/disk-verify.dat");
	disk->count = (uint64_t)(option(argc, argv, "--size-mib", 16) * (1 << 20) / BLOCK_BYTES);
	disk->flush_every = (uint64_t)option(argc, argv, "--flush-every", 8);
	disk->use_fsync = option(argc, argv, "--fsync", 0) != 0;
	disk->random = (uint64_t)option(argc, argv, "--seed", 1) << 40;
	disk->versions = calloc(disk->count, sizeof *disk->versions);
	disk->writer = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	disk->reader = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	disk->is_direct = disk->reader >= 0;
	if (!disk->is_direct)
		disk->reader = open(path, O_RDONLY | O_CLOEXEC);
	if (disk->count == 0 || !disk->versions || disk->writer < 0 || disk->reader < 0 ||
	    posix_memalign((void **)&disk->block, BLOCK_BYTES, BLOCK_BYTES)) {
		fprintf(stderr, "disk-verify: %s: %s\n", path, strerror(errno));
		exit(2);
	}
	uint64_t flush_every = disk->flush_every;
	disk->flush_every = 1024;
	for (uint64_t number = 0; number < disk->count; number++)
		write_block(disk, number);
	flush(disk);
	disk->flush_every = flush_every;
}

static void report(const struct disk *disk, unsigned seconds)
{
	printf("disk-verify: seconds=%u blocks=%llu written=%llu flushed=%llu verified=%llu sweeps=%llu direct=%d errors=0\n",
	       seconds, (unsigned long long)disk->count, (unsigned long long)disk->written,
	       (unsigned long long)disk->flushed, (unsigned long long)disk->verified, (unsigned long long)disk->sweeps,
	       disk->is_direct);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct disk disk = {0};
	check_options(argc, argv, USAGE);
	start(&disk, argc, argv);
	double write_rate = option(argc, argv, "--rate-mib", 1) * (1 << 20);
	double sweep_rate = option(argc, argv, "--sweep-mib", 2) * (1 << 20);
	double last_s = now_s(), next_report_s = last_s + 1, write_credit = 0, sweep_credit = 0;
	unsigned seconds_max = (unsigned)option(argc, argv, "--seconds", 0), seconds = 0;
	report(&disk, 0);
	while (!seconds_max || seconds < seconds_max) {
		double allowed = pace(&last_s, 1);
		for (write_credit += allowed * write_rate; write_credit >= BLOCK_BYTES; write_credit -= BLOCK_BYTES) {
			uint64_t number = mix(disk.random++) % disk.count;
			verify(&disk, number);
			disk.versions[number]++;
			write_block(&disk, number);
			disk.written++;
		}
		for (sweep_credit += allowed * sweep_rate; sweep_credit >= BLOCK_BYTES; sweep_credit -= BLOCK_BYTES)
			sweep(&disk);
		if (last_s >= next_report_s) {
			report(&disk, ++seconds);
			next_report_s = last_s + 1;
		}
	}
	return 0;
}
