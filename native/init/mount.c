#include "mount.h"

#include <errno.h>
#include <stddef.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "grow.h"
#include "log.h"

#define DISK "/dev/vda"
#define NEW_ROOT "/disk"
#define DISK_WAITS 500 /* of 10 ms */

struct mount_point {
    const char *type, *path, *options;
    unsigned long flags;
};

#define SAFE (MS_NOSUID | MS_NODEV | MS_NOEXEC)

static const struct mount_point mount_points[] = {
    {"proc", "/proc", "", SAFE},
    {"sysfs", "/sys", "", SAFE},
    {"devtmpfs", "/dev", "mode=0755", MS_NOSUID | MS_NOEXEC},
    {"devpts", "/dev/pts", "mode=0620,ptmxmode=0666,gid=5", MS_NOSUID | MS_NOEXEC},
    {"tmpfs", "/dev/shm", "mode=1777", SAFE},
    {"mqueue", "/dev/mqueue", "", SAFE},
    {"cgroup2", "/sys/fs/cgroup", "nsdelegate", SAFE},
};

static const char *const links[][2] = {
    {"/proc/self/fd", "/dev/fd"},
    {"/proc/self/fd/0", "/dev/stdin"},
    {"/proc/self/fd/1", "/dev/stdout"},
    {"/proc/self/fd/2", "/dev/stderr"},
    {"/proc/kcore", "/dev/core"},
};

int mount_kernel_file_systems(void) {
    for (size_t i = 0; i < sizeof mount_points / sizeof *mount_points; i++) {
        const struct mount_point *point = &mount_points[i];
        mkdir(point->path, 0755);
        if (mount(point->type, point->path, point->type, point->flags, point->options) != 0 && errno != EBUSY)
            return errno;
    }
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        if (symlink(links[i][0], links[i][1]) != 0 && errno != EEXIST)
            return errno;
    return 0;
}

static int move_into_new_root(const char *path, const char *target) {
    mkdir(target, 0755);
    return mount(path, target, NULL, MS_MOVE, NULL) == 0 ? 0 : errno;
}

/* pivot_root refuses to leave an initramfs; moving the mount over it and chroot is what it documents instead. */
static int switch_root(void) {
    static const char *const moved[][2] = {{"/dev", NEW_ROOT "/dev"}, {"/proc", NEW_ROOT "/proc"}, {"/sys", NEW_ROOT "/sys"}};
    for (size_t i = 0; i < sizeof moved / sizeof *moved; i++) {
        int cause = move_into_new_root(moved[i][0], moved[i][1]);
        if (cause != 0)
            return cause;
    }
    if (chdir(NEW_ROOT) != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0 || chdir("/") != 0)
        return errno;
    return 0;
}

static int wait_for_disk(void) {
    for (int i = 0; i < DISK_WAITS && access(DISK, F_OK) != 0; i++)
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    return access(DISK, F_OK) == 0 ? 0 : ENODEV;
}

/* noatime and noinit_itable: a disk that nobody writes to stays as it is, and costs an epoch nothing. */
int mount_root(const char **what) {
    *what = DISK;
    int cause = wait_for_disk();
    if (cause != 0)
        return cause;
    mkdir(NEW_ROOT, 0755);
    if (mount(DISK, NEW_ROOT, "ext4", MS_NOATIME, "noinit_itable,errors=remount-ro") != 0)
        return errno;
    cause = grow_file_system(DISK, NEW_ROOT);
    if (cause != 0)
        say("the file system could not grow to the size of its disk (errno %d)", cause);
    *what = "the root directory";
    cause = switch_root();
    if (cause != 0)
        return cause;
    if (symlink("/proc/mounts", "/etc/mtab") != 0 && errno != EEXIST && errno != ENOENT)
        return errno;
    return 0;
}
