#pragma once

/* Loads the modules that the list file names, in its order, and removes their files. 0, or the first errno; its name in `*name`. */
int modules_load(const char *list, const char **name);
