#pragma once

/* Makes the mounted ext4 as large as its device, where it is smaller. 0, or an errno. */
int grow_file_system(const char *device, const char *mount_point);
