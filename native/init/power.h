#pragma once

/* Kills everything, writes everything to disk and switches the machine off. */
void power_off(void) __attribute__((noreturn));
