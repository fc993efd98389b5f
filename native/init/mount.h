#pragma once

/* The kernel's file systems, under the initramfs: /proc, /sys, /dev and what belongs below them, cgroup2. False with errno. */
int mount_kernel_file_systems(void);

/* Mounts /dev/vda, makes it as large as the disk and the root of everything. 0, or an errno; what failed in `*what`. */
int mount_root(const char **what);
