/* The address is a /32 and the gateway is on no subnet of it: its neighbour entry is permanent and its route is by device, so that
 * nothing in the guest depends on which host it is on. By ioctl: few words, and a kernel without netlink tools is all we have. */
#include "network.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define INTERFACE "eth0"

static struct sockaddr internet_address(const uint8_t bytes[4]) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    struct sockaddr result;
    memcpy(&address.sin_addr, bytes, 4);
    memcpy(&result, &address, sizeof result);
    return result;
}

static struct ifreq request_for(const char *interface) {
    struct ifreq request = {0};
    strncpy(request.ifr_name, interface, IFNAMSIZ - 1);
    return request;
}

static int set_flags(int fd, const char *interface, short set, short cleared) {
    struct ifreq request = request_for(interface);
    if (ioctl(fd, SIOCGIFFLAGS, &request) != 0)
        return errno;
    request.ifr_flags = (short)((request.ifr_flags | set) & ~cleared);
    return ioctl(fd, SIOCSIFFLAGS, &request) == 0 ? 0 : errno;
}

static int set_mac_and_mtu(int fd, const struct network_config *config) {
    struct ifreq request = request_for(INTERFACE);
    request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    memcpy(request.ifr_hwaddr.sa_data, config->mac, 6);
    if (ioctl(fd, SIOCSIFHWADDR, &request) != 0)
        return errno;
    request = request_for(INTERFACE);
    request.ifr_mtu = (int)config->mtu;
    return ioctl(fd, SIOCSIFMTU, &request) == 0 ? 0 : errno;
}

static int set_address(int fd, const struct network_config *config) {
    static const uint8_t all_ones[4] = {255, 255, 255, 255};
    struct ifreq request = request_for(INTERFACE);
    request.ifr_addr = internet_address(config->address);
    if (ioctl(fd, SIOCSIFADDR, &request) != 0)
        return errno;
    request.ifr_netmask = internet_address(all_ones);
    if (ioctl(fd, SIOCSIFNETMASK, &request) != 0)
        return errno;
    /* The kernel has derived a broadcast address from the class of the address; a /32 has none. */
    memset(&request.ifr_broadaddr, 0, sizeof request.ifr_broadaddr);
    request.ifr_broadaddr.sa_family = AF_INET;
    return ioctl(fd, SIOCSIFBRDADDR, &request) == 0 ? 0 : errno;
}

static int set_neighbour(int fd, const struct network_config *config) {
    struct arpreq request = {.arp_flags = ATF_PERM | ATF_COM};
    request.arp_pa = internet_address(config->gateway);
    request.arp_ha.sa_family = ARPHRD_ETHER;
    memcpy(request.arp_ha.sa_data, config->gateway_mac, 6);
    strcpy(request.arp_dev, INTERFACE);
    return ioctl(fd, SIOCSARP, &request) == 0 ? 0 : errno;
}

static int add_routes(int fd, const struct network_config *config) {
    static const uint8_t nothing[4], all_ones[4] = {255, 255, 255, 255};
    char interface[] = INTERFACE;
    struct rtentry to_gateway = {.rt_flags = RTF_UP | RTF_HOST, .rt_dev = interface};
    to_gateway.rt_dst = internet_address(config->gateway);
    to_gateway.rt_genmask = internet_address(all_ones);
    if (ioctl(fd, SIOCADDRT, &to_gateway) != 0 && errno != EEXIST)
        return errno;
    struct rtentry to_all = {.rt_flags = RTF_UP | RTF_GATEWAY, .rt_dev = interface};
    to_all.rt_dst = internet_address(nothing);
    to_all.rt_genmask = internet_address(nothing);
    to_all.rt_gateway = internet_address(config->gateway);
    return ioctl(fd, SIOCADDRT, &to_all) == 0 || errno == EEXIST ? 0 : errno;
}

static void write_setting(const char *path, const char *value) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (write(fd, value, strlen(value)) < 0)
        errno = 0; /* A kernel without this setting needs it not. */
    close(fd);
}

/* What container runtimes set: a process that is not root may listen on port 80 and ping. No IPv6 outside: the fabric carries v4. */
static void apply_settings(void) {
    write_setting("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    write_setting("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    write_setting("/proc/sys/net/ipv6/conf/" INTERFACE "/disable_ipv6", "1");
}

static int configure(int fd, const struct network_config *config, const char **what) {
    int cause = 0;
    *what = "lo";
    if ((cause = set_flags(fd, "lo", IFF_UP, 0)) != 0)
        return cause;
    *what = INTERFACE;
    if ((cause = set_flags(fd, INTERFACE, 0, IFF_UP)) != 0)
        return cause;
    apply_settings();
    *what = "MAC and MTU of " INTERFACE;
    if ((cause = set_mac_and_mtu(fd, config)) != 0)
        return cause;
    *what = "address of " INTERFACE;
    if ((cause = set_address(fd, config)) != 0 || (cause = set_flags(fd, INTERFACE, IFF_UP, 0)) != 0)
        return cause;
    *what = "neighbour entry of the gateway";
    if ((cause = set_neighbour(fd, config)) != 0)
        return cause;
    *what = "routes";
    return add_routes(fd, config);
}

int network_configure(const struct network_config *config, const char **what) {
    *what = "a socket";
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return errno;
    int cause = configure(fd, config, what);
    close(fd);
    return cause;
}
