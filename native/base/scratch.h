// Working memory of a kernel: one growing block per thread and slot, 64-byte aligned, contents undefined.
// A pointer stays valid until the same thread asks for the same slot again. Slots: 0, 1 for a caller that prepares inputs
// for all threads; 2, 3 for the body of a parallel loop.
#pragma once
#include <cstddef>

namespace haversack {
void *scratch(int slot, size_t bytes);
}  // namespace haversack
