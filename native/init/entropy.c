#include "entropy.h"

#include <fcntl.h>
#include <linux/random.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define SEED_BYTES_MAX 512

void entropy_seed(const uint8_t *bytes, size_t length) {
    struct {
        struct rand_pool_info info;
        uint8_t bytes[SEED_BYTES_MAX];
    } seed;
    size_t count = length < SEED_BYTES_MAX ? length : SEED_BYTES_MAX;
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    seed.info.entropy_count = (int)(count * 8);
    seed.info.buf_size = (int)count;
    memcpy(seed.info.buf, bytes, count);
    ioctl(fd, RNDADDENTROPY, &seed);
    ioctl(fd, RNDRESEEDCRNG);
    explicit_bzero(&seed, sizeof seed);
    close(fd);
}
