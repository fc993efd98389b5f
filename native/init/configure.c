#include "configure.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "cgroup.h"
#include "clock.h"
#include "cursor.h"
#include "entropy.h"
#include "event.h"
#include "identity.h"
#include "modules.h"
#include "mount.h"
#include "network.h"
#include "protocol.h"
#include "request.h"
#include "workload.h"

#define LATE_MODULES "/modules/late"

struct texts {
    char *host_name, *machine_id, *hosts, *resolv_conf;
};

/* Disk and network card are looked at only now: a template that resumes as this VM has another disk than it booted beside. */
static int take_disk(const char **what) {
    static bool done;
    if (done)
        return 0;
    int cause = modules_load(LATE_MODULES, what);
    if (cause == 0)
        cause = mount_root(what);
    done = cause == 0;
    return cause;
}

static int apply(const struct configure_payload *payload, const struct texts *texts, const char **what) {
    int cause = take_disk(what);
    if (cause == 0)
        cause = identity_set(texts->host_name, texts->machine_id, texts->hosts, texts->resolv_conf, what);
    if (cause != 0)
        return cause;
    struct network_config network = {.mtu = payload->mtu};
    memcpy(network.address, payload->address, sizeof network.address);
    memcpy(network.gateway, payload->gateway, sizeof network.gateway);
    memcpy(network.mac, payload->mac, sizeof network.mac);
    memcpy(network.gateway_mac, payload->gateway_mac, sizeof network.gateway_mac);
    return network_configure(&network, what);
}

void configure(uint64_t id, const uint8_t *bytes, size_t length) {
    struct configure_payload payload;
    struct cursor cursor = cursor_over(bytes, length);
    size_t seed_bytes;
    cursor_copy(&cursor, &payload, sizeof payload);
    struct texts texts = {0};
    texts.host_name = cursor_text(&cursor);
    texts.machine_id = cursor_text(&cursor);
    texts.hosts = cursor_text(&cursor);
    texts.resolv_conf = cursor_text(&cursor);
    const uint8_t *seed = cursor_bytes(&cursor, &seed_bytes);
    const char *what = "";
    if (cursor.bad) {
        request_answer(id, EBADMSG, "CONFIGURE is malformed");
    } else {
        entropy_seed(seed, seed_bytes);
        if (guest_state < GUEST_RUNNING)
            clock_step_to(payload.realtime_ns);
        int cause = apply(&payload, &texts, &what);
        if (cause == 0 && guest_state == GUEST_BOOTED)
            guest_state = GUEST_CONFIGURED;
        request_answer(id, cause, "%s%s%s", cause ? what : "", cause ? ": " : "", cause ? strerror(cause) : "");
    }
    free(texts.host_name);
    free(texts.machine_id);
    free(texts.hosts);
    free(texts.resolv_conf);
}
