// Loading memory as fast as an instruction set can: what `devices measure` times.
#pragma once
#include <cstdint>

#include "base/isa.h"

namespace haversack {
struct ReadingKernels {
    // Loads every byte of data[0..bytes), bytes a multiple of 512; what it returns only keeps the loads alive.
    int32_t (*load_all)(const uint8_t *data, int64_t bytes);
};
}  // namespace haversack
HAVERSACK_FAMILY(ReadingKernels, reading)
