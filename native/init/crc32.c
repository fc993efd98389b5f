/* CRC-32 (IEEE 802.3, reflected), by a table made at first use. */
#include "crc32.h"

static uint32_t table[256];

static void fill_table(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++)
            value = (value & 1) ? 0xEDB88320u ^ (value >> 1) : value >> 1;
        table[i] = value;
    }
}

uint32_t crc32_update(uint32_t crc, const void *data, size_t length) {
    const uint8_t *byte = data;
    if (table[1] == 0)
        fill_table();
    crc = ~crc;
    while (length--)
        crc = table[(crc ^ *byte++) & 0xFF] ^ (crc >> 8);
    return ~crc;
}
