// Memory for weights that are copied once at load: aligned to 2 MiB, with huge pages advised.
#pragma once
#include <cstddef>

namespace haversack {

constexpr size_t copy_piece = size_t(8) << 20;

void *huge_allocate(size_t bytes);  // nullptr when there is none
void huge_free(void *data, size_t bytes);

// Copies in pieces of copy_piece; after each, source pages that are a read-only mapping of a file are given back, so that
// copy and source are never resident together. Other sources are only read.
void copy_dropping(void *to, const void *from, size_t bytes);

}  // namespace haversack
