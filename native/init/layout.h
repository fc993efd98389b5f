#pragma once

/* Prints the sizes and offsets of every shared struct and the values of every shared constant, one a line. */
void print_layout(void);
