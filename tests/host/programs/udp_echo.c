/* Sends every datagram that comes to port 7001 back, with a receive buffer that a stalled vCPU does not fill. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <sys/socket.h>

int main(void)
{
	static char data[2048];
	struct sockaddr_in peer, own = { .sin_family = AF_INET, .sin_port = htons(7001) };
	int buffer_bytes = 8 << 20;
	int descriptor = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (setsockopt(descriptor, SOL_SOCKET, SO_RCVBUFFORCE, &buffer_bytes, sizeof(buffer_bytes)) < 0)
		perror("SO_RCVBUFFORCE");
	if (bind(descriptor, (struct sockaddr *)&own, sizeof(own)) < 0) {
		perror("bind");
		return 1;
	}
	puts("ready");
	fflush(stdout);
	for (;;) {
		socklen_t length = sizeof(peer);
		ssize_t count = recvfrom(descriptor, data, sizeof(data), 0, (struct sockaddr *)&peer, &length);

		if (count > 0)
			sendto(descriptor, data, count, 0, (struct sockaddr *)&peer, length);
	}
}
