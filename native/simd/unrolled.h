// Loops of a constant number of steps that are written out before the compiler looks at registers: an array that only such
// loops touch stays in registers, where one under a plain loop may go to memory and back.
#pragma once
#include <type_traits>

#include "simd/simd.h"

// Behind the parameters of a body: unrolled<N>([&](auto i) HAVERSACK_ALWAYS { ... }), where i is a constant, 0 .. N - 1.
#define HAVERSACK_ALWAYS __attribute__((always_inline))

namespace haversack::HAVERSACK_TARGET {

template <int N, int I = 0, typename Body>
HAVERSACK_INLINE void unrolled(const Body &body) {
    if constexpr (I < N) {
        body(std::integral_constant<int, I>{});
        unrolled<N, I + 1>(body);
    }
}

}  // namespace haversack::HAVERSACK_TARGET
