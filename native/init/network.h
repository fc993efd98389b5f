#pragma once
#include <stdint.h>

struct network_config {
    uint8_t address[4], gateway[4], mac[6], gateway_mac[6];
    uint32_t mtu;
};

/* Brings lo up, and eth0 with its address as a /32 and a default route over a gateway that answers no ARP. 0, or an errno; what
 * failed in `*what`. May be repeated with other values. */
int network_configure(const struct network_config *config, const char **what);
