#define _GNU_SOURCE
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cgroup.h"
#include "home.h"
#include "protocol.h"

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static char **parse_texts(struct cursor *cursor, size_t count) {
    char **texts = calloc(count + 1, sizeof *texts);
    if (texts == NULL)
        cursor->bad = true;
    for (size_t i = 0; texts != NULL && i < count && !cursor->bad; i++)
        texts[i] = cursor_text(cursor);
    return texts;
}

static void free_texts(char **texts) {
    for (size_t i = 0; texts != NULL && texts[i] != NULL; i++)
        free(texts[i]);
    free(texts);
}

bool process_parse(struct cursor *cursor, struct process_config *config) {
    struct process_payload payload;
    cursor_copy(cursor, &payload, sizeof payload);
    *config = (struct process_config){.uid = payload.uid, .gid = payload.gid, .tty = payload.tty != 0,
                                      .rows = payload.rows, .columns = payload.columns};
    if (payload.group_count > GROUPS_MAX || payload.arg_count == 0)
        cursor->bad = true;
    config->group_count = cursor->bad ? 0 : payload.group_count;
    config->groups = calloc(config->group_count + 1u, sizeof *config->groups);
    if (config->groups == NULL)
        cursor->bad = true;
    else
        cursor_copy(cursor, config->groups, config->group_count * sizeof *config->groups);
    config->cwd = cursor_text(cursor);
    config->args = parse_texts(cursor, payload.arg_count);
    config->env = parse_texts(cursor, payload.env_count);
    if (cursor->bad)
        process_free(config);
    return !cursor->bad;
}

void process_free(struct process_config *config) {
    free(config->groups);
    free(config->cwd);
    free_texts(config->args);
    free_texts(config->env);
    *config = (struct process_config){0};
}

static void set_limits(void) {
    struct rlimit files = {.rlim_cur = 65536, .rlim_max = 1048576};
    struct rlimit core = {.rlim_cur = 0, .rlim_max = RLIM_INFINITY};
    setrlimit(RLIMIT_NOFILE, &files);
    setrlimit(RLIMIT_CORE, &core);
}

static void reset_signals(void) {
    sigset_t none;
    sigemptyset(&none);
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* As OCI runtimes do: a working directory that the image lacks is made, by root. */
static void make_directories(const char *path) {
    char *copy = strdup(path);
    for (char *slash = copy ? strchr(copy + 1, '/') : NULL; slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(copy, 0755);
        *slash = '/';
    }
    mkdir(path, 0755);
    free(copy);
}

static void fail(const char *what, int cause) __attribute__((noreturn));
static void fail(const char *what, int cause) {
    dprintf(STDERR_FILENO, "architect: cannot start %s: %s\n", what, strerror(cause));
    _exit(cause == ENOENT || cause == ENOTDIR ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE);
}

static void fill_environment(const struct process_config *config) {
    char host[65] = "";
    clearenv();
    for (char **variable = config->env; *variable != NULL; variable++)
        if (strchr(*variable, '=') != NULL && **variable != '=')
            putenv(*variable);
    gethostname(host, sizeof host - 1);
    setenv("PATH", DEFAULT_PATH, 0);
    setenv("HOSTNAME", host, 0);
    if (config->tty)
        setenv("TERM", "xterm", 0);
    if (getenv("HOME") == NULL || *getenv("HOME") == 0)
        setenv("HOME", home_of(config->uid), 1);
}

/* execvp() with the process's own PATH; glibc's would run a script without a first line through a shell, a runtime does not. */
static void execute(char **args) __attribute__((noreturn));
static void execute(char **args) {
    int cause = ENOENT;
    char path[4096];
    if (strchr(args[0], '/') != NULL) {
        execve(args[0], args, environ);
        fail(args[0], errno);
    }
    for (const char *entry = getenv("PATH"); entry != NULL && *args[0] != 0;) {
        int length = (int)strcspn(entry, ":");
        snprintf(path, sizeof path, "%.*s/%s", length > 0 ? length : 1, length > 0 ? entry : ".", args[0]);
        execve(path, args, environ);
        if (errno != ENOENT && errno != ENOTDIR)
            cause = errno;
        entry = entry[length] == ':' ? entry + length + 1 : NULL;
    }
    fail(args[0], cause);
}

static void run_child(const struct process_config *config, const struct process_files *files, const char *cgroup)
    __attribute__((noreturn));
static void run_child(const struct process_config *config, const struct process_files *files, const char *cgroup) {
    cgroup_enter(cgroup);
    reset_signals();
    setsid();
    dup2(files->input, STDIN_FILENO);
    dup2(files->output, STDOUT_FILENO);
    dup2(files->error, STDERR_FILENO);
    if (config->tty)
        ioctl(STDIN_FILENO, TIOCSCTTY, 0);
    set_limits();
    umask(022);
    fill_environment(config);
    if (chdir(config->cwd) != 0) {
        make_directories(config->cwd);
        if (chdir(config->cwd) != 0)
            fail(config->cwd, errno);
    }
    if (setgroups(config->group_count, config->groups) != 0 || setgid(config->gid) != 0 || setuid(config->uid) != 0)
        fail("as that user", errno);
    execute(config->args);
}

pid_t process_spawn(const struct process_config *config, const struct process_files *files, const char *cgroup) {
    pid_t pid = fork();
    if (pid == 0)
        run_child(config, files, cgroup);
    return pid;
}

uint32_t process_exit_code(int status) {
    return WIFSIGNALED(status) ? 128u + (uint32_t)WTERMSIG(status) : (uint32_t)WEXITSTATUS(status);
}
