#pragma once
#include <stddef.h>
#include <stdint.h>

/* The names of the machine: host name, /etc/hostname, /etc/hosts, /etc/resolv.conf, /etc/machine-id. An empty text leaves its
 * file alone. 0, or an errno; what failed in `*what`. */
int identity_set(const char *host_name, const char *machine_id, const char *hosts, const char *resolv_conf, const char **what);
