/* The guest's date: a pause of the machine loses its length, and here it is made up for. */
#pragma once
#include <stdint.h>

/* Sets it outright; only before anybody looks, or far forward. */
void clock_step_to(uint64_t realtime_ns);

/* Moves it by `offset_ns`: up to a second forward, and always backward, by running faster or slower; further forward by a step. */
void clock_adjust(int64_t offset_ns);

/* What of the last adjustment is still to come; of the other sign what it has overshot by. */
int64_t clock_slewing_ns(void);
