#pragma once

/* Puts what waits to be sent (answers, log records, exec sessions, the exit) into the channel's output, as far as there is room. */
void outbound_fill(void);
