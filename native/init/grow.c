#include "grow.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* linux/fs/ext4/ext4.h; not in the exported headers. */
#define EXT4_RESIZE_FS _IOW('f', 16, uint64_t)
#define SUPERBLOCK_AT 1024
#define MAGIC 0xEF53

static uint32_t field(const uint8_t *superblock, size_t offset) {
    uint32_t value;
    memcpy(&value, superblock + offset, sizeof value);
    return value;
}

/* Blocks the file system has, and could have. Offsets: linux/Documentation/filesystems/ext4/super.rst */
static int read_sizes(const char *device, uint64_t *blocks, uint64_t *blocks_possible) {
    uint8_t superblock[1024];
    uint64_t device_bytes;
    int fd = open(device, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int cause = 0;
    if (pread(fd, superblock, sizeof superblock, SUPERBLOCK_AT) != sizeof superblock || ioctl(fd, BLKGETSIZE64, &device_bytes) != 0)
        cause = EIO;
    close(fd);
    if (cause != 0)
        return cause;
    if ((field(superblock, 0x38) & 0xFFFF) != MAGIC)
        return EINVAL;
    *blocks = field(superblock, 0x04) | (uint64_t)field(superblock, 0x150) << 32;
    *blocks_possible = device_bytes / (1024u << field(superblock, 0x18));
    return 0;
}

int grow_file_system(const char *device, const char *mount_point) {
    uint64_t blocks, blocks_possible;
    int cause = read_sizes(device, &blocks, &blocks_possible);
    if (cause != 0 || blocks >= blocks_possible)
        return cause;
    int fd = open(mount_point, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    cause = ioctl(fd, EXT4_RESIZE_FS, &blocks_possible) == 0 ? 0 : errno;
    close(fd);
    return cause;
}
