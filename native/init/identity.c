#include "identity.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A new file in the place of the old: what is there may be a link to where nothing is. */
static int replace(const char *path, const char *text, mode_t mode) {
    if (*text == 0)
        return 0;
    unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    if (fd < 0)
        return errno;
    int cause = write(fd, text, strlen(text)) == (ssize_t)strlen(text) ? 0 : EIO;
    close(fd);
    return cause;
}

int identity_set(const char *host_name, const char *machine_id, const char *hosts, const char *resolv_conf, const char **what) {
    char line[80];
    int cause;
    mkdir("/etc", 0755);
    *what = "host name";
    if (sethostname(host_name, strlen(host_name)) != 0)
        return errno;
    snprintf(line, sizeof line, *host_name ? "%s\n" : "", host_name);
    *what = "/etc/hostname";
    if ((cause = replace("/etc/hostname", line, 0644)) != 0)
        return cause;
    *what = "/etc/hosts";
    if ((cause = replace("/etc/hosts", hosts, 0644)) != 0)
        return cause;
    *what = "/etc/resolv.conf";
    if ((cause = replace("/etc/resolv.conf", resolv_conf, 0644)) != 0)
        return cause;
    snprintf(line, sizeof line, *machine_id ? "%s\n" : "", machine_id);
    *what = "/etc/machine-id";
    return replace("/etc/machine-id", line, 0444);
}
