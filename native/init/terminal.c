#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

int terminal_open(int *slave, uint16_t rows, uint16_t columns, uint32_t uid) {
    char path[32];
    int number, unlocked = 0, master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (master < 0)
        return -1;
    if (ioctl(master, TIOCGPTN, &number) == 0 && ioctl(master, TIOCSPTLCK, &unlocked) == 0) {
        snprintf(path, sizeof path, "/dev/pts/%d", number);
        *slave = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
        if (*slave >= 0) {
            if (fchown(*slave, uid, 5) == 0)
                terminal_resize(master, rows, columns);
            return master;
        }
    }
    int cause = errno;
    close(master);
    errno = cause;
    return -1;
}

int terminal_resize(int master, uint16_t rows, uint16_t columns) {
    struct winsize size = {.ws_row = rows, .ws_col = columns};
    return ioctl(master, TIOCSWINSZ, &size) == 0 ? 0 : errno;
}

int dup_closing_on_exec(int fd) {
    return fcntl(fd, F_DUPFD_CLOEXEC, 3);
}
