/* See fuzzer.h. The runs of the target are counted by the target itself, in memory that it shares with us: AFL writes its own count
 * once a minute only. The memory is a memfd at a number that AFL leaves alone (it uses 198 and 199).
 */
#define _GNU_SOURCE
#include "fuzzer.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define COUNTER_FD 100
#define LOG "/demo/fuzzer.log"
#define QUEUE "/demo/queue/default/queue"
#define LOG_BYTES_MAX (1 << 20)
#define RESTART_S 1.0

static const char *const SETTINGS[] = {
	"AFL_NO_UI=1", "AFL_QUIET=1", "AFL_NO_AFFINITY=1", "AFL_SKIP_CPUFREQ=1", "AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES=1",
	"AFL_AUTORESUME=1", "AFL_NO_STARTUP_CALIBRATION=1", "AFL_FORKSRV_INIT_TMOUT=60000", "AFL_TESTCACHE_SIZE=2",
};

static void become_fuzzer(void)
{
	char *const words[] = {"afl-fuzz", "-i", "/demo/seeds", "-o", "/demo/queue", "-t", "10000", "-m", "none",
			       "--", "/demo/target", NULL};
	struct sched_param none = {0};
	sched_setscheduler(0, SCHED_IDLE, &none);
	int log = open(LOG, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0644);
	for (size_t i = 0; i < sizeof SETTINGS / sizeof *SETTINGS; i++)
		putenv((char *)SETTINGS[i]);
	if (log >= 0) {
		dup2(log, 1);
		dup2(log, 2);
	}
	for (int fd = 3; fd < COUNTER_FD; fd++)
		close(fd);
	setpgid(0, 0);
	execvp(words[0], words);
	_exit(127);
}

static void launch(struct fuzzer *fuzzer)
{
	fuzzer->pid = fork();
	if (fuzzer->pid == 0)
		become_fuzzer();
	if (fuzzer->pid < 0)
		printf("service: fuzzer does not start: %s\n", strerror(errno));
	else
		printf("service: fuzzer runs as process %d\n", fuzzer->pid);
	fflush(stdout);
}

void fuzzer_start(struct fuzzer *fuzzer)
{
	int memory = memfd_create("executions", 0);
	memset(fuzzer, 0, sizeof *fuzzer);
	if (memory < 0 || ftruncate(memory, 4096) < 0 || dup2(memory, COUNTER_FD) < 0) {
		perror("service: counter");
		exit(1);
	}
	close(memory);
	fuzzer->executions = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, COUNTER_FD, 0);
	if (fuzzer->executions == MAP_FAILED) {
		perror("service: counter");
		exit(1);
	}
	launch(fuzzer);
}

/* The end of the fuzzer's log, where it says why it gave up. */
static void print_log_end(void)
{
	char text[1025];
	int log = open(LOG, O_RDONLY | O_CLOEXEC);
	off_t size = log < 0 ? 0 : lseek(log, 0, SEEK_END);
	ssize_t got = log < 0 ? 0 : pread(log, text, 1024, size > 1024 ? size - 1024 : 0);
	if (got > 0)
		printf("service: it wrote last: %.*s\n", (int)got, text);
	if (log >= 0)
		close(log);
}

/* AFL tells of every case it works on: begin again before that fills the disk. */
static void bound_log(void)
{
	struct stat found;
	if (stat(LOG, &found) == 0 && found.st_size > LOG_BYTES_MAX && truncate(LOG, 0) < 0)
		perror("service: " LOG);
}

void fuzzer_step(struct fuzzer *fuzzer, double now)
{
	int status;
	bound_log();
	if (fuzzer->pid > 0 && waitpid(fuzzer->pid, &status, WNOHANG) == fuzzer->pid) {
		printf("service: fuzzer ended with status %d, restart %u\n", status, fuzzer->restarts + 1);
		print_log_end();
		fflush(stdout);
		kill(-fuzzer->pid, SIGKILL);
		fuzzer->pid = -1;
		fuzzer->restart_at_s = now + RESTART_S;
	}
	if (fuzzer->pid < 0 && now >= fuzzer->restart_at_s) {
		fuzzer->restarts++;
		fuzzer->restart_at_s = now + RESTART_S;
		launch(fuzzer);
	}
}

unsigned fuzzer_queue_length(void)
{
	unsigned count = 0;
	DIR *directory = opendir(QUEUE);
	if (!directory)
		return 0;
	for (struct dirent *entry; (entry = readdir(directory));)
		count += entry->d_name[0] != '.';
	closedir(directory);
	return count;
}

void fuzzer_stop(struct fuzzer *fuzzer)
{
	if (fuzzer->pid > 0) {
		kill(-fuzzer->pid, SIGKILL);
		waitpid(fuzzer->pid, NULL, 0);
	}
}
