/* Preloaded into QEMU: makes a userfaultfd inside QEMU's address space, where it has to be made.
 *
 * A userfaultfd belongs to the address space that makes it. The agent passes /dev/userfaultfd as an inherited descriptor (number in
 * ARCHITECT_UFFD_DEVICE), so that it works for an unprivileged user whatever vm.unprivileged_userfaultfd says, kernel faults included;
 * the memory process takes the result (number UFFD_NUMBER) with pidfd_getfd(2). See DESIGN §3 and userfaultfd(2), "/dev/userfaultfd".
 * Fails silently on purpose: the memory process finds no descriptor and reports it by name. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define UFFD_NUMBER 900

__attribute__((constructor)) static void make_uffd(void)
{
	const char *word = getenv("ARCHITECT_UFFD_DEVICE");

	unsetenv("LD_PRELOAD"); /* not for what QEMU itself might start */
	unsetenv("ARCHITECT_UFFD_DEVICE");
	if (!word)
		return;
	int device = atoi(word);
	int uffd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);

	if (uffd >= 0) {
		dup3(uffd, UFFD_NUMBER, O_CLOEXEC);
		close(uffd);
	}
	close(device);
}
