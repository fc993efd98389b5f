#include "modules.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int load(const char *file) {
    char path[300];
    snprintf(path, sizeof path, "/modules/%s", file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int cause = syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST ? errno : 0;
    close(fd);
    /* The initramfs stays in memory for as long as its files do. */
    if (cause == 0)
        unlink(path);
    return cause;
}

int modules_load(const char *list, const char **name) {
    static char line[256];
    int cause = 0;
    FILE *file = fopen(list, "re");
    *name = list;
    if (file == NULL)
        return errno;
    while (cause == 0 && fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = 0;
        *name = line;
        if (*line != 0)
            cause = load(line);
    }
    fclose(file);
    return cause;
}
