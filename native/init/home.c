#include "home.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Fields: name:password:uid:gid:gecos:home:shell */
const char *home_of(uint32_t uid) {
    static char home[1024];
    char line[2048];
    snprintf(home, sizeof home, "/");
    FILE *passwd = fopen("/etc/passwd", "re");
    while (passwd != NULL && fgets(line, sizeof line, passwd) != NULL) {
        char *rest = line, *fields[7] = {0}, *end;
        for (int i = 0; i < 7; i++)
            fields[i] = strsep(&rest, ":\n");
        if (fields[5] == NULL || *fields[2] == 0 || strtoul(fields[2], &end, 10) != uid || *end != 0)
            continue;
        if (*fields[5] == '/')
            snprintf(home, sizeof home, "%s", fields[5]);
        break;
    }
    if (passwd != NULL)
        fclose(passwd);
    return home;
}
