/* Stands in for QEMU in network tests: carries frames between the VM's tap on a host and the "guest's" tap, both with virtio headers.
 * Usage: frame_pump HOST_FD GUEST_FD. It starts paused; on stdin 'r' runs, 'p' pauses (answered by the same byte once it is so). */
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

static char frame[70000];

static void carry(int from, int to)
{
	for (int i = 0; i < 64; i++) {
		ssize_t got = read(from, frame, sizeof(frame));

		if (got <= 0)
			return;
		if (write(to, frame, got) < 0)
			continue;
	}
}

int main(int argc, char **argv)
{
	int host = argc > 2 ? atoi(argv[1]) : -1, guest = argc > 2 ? atoi(argv[2]) : -1, runs = 0;
	struct pollfd fds[3] = { { 0, POLLIN, 0 }, { host, POLLIN, 0 }, { guest, POLLIN, 0 } };
	char command;

	for (;;) {
		poll(fds, runs ? 3 : 1, -1);
		if (fds[0].revents) {
			if (read(0, &command, 1) != 1)
				return 0;
			runs = command == 'r';
			if (write(1, &command, 1) != 1)
				return 1;
			continue;
		}
		if (fds[1].revents)
			carry(host, guest);
		if (fds[2].revents)
			carry(guest, host);
	}
}
