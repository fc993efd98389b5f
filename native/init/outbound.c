#include "outbound.h"

#include "exec.h"
#include "hook.h"
#include "request.h"
#include "workload.h"

void outbound_fill(void) {
    request_send_answers();
    hook_resume();
    exec_send();
    workload_send();
}
