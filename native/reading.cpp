#include "reading.h"

#include "simd/simd.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

constexpr int64_t ahead = 4096;  // hardware prefetchers stop at the end of a page

int32_t load_all(const uint8_t *data, int64_t bytes) {
    Ints sums[8];
    for (Ints &sum : sums) sum = set_ints(0);
    for (int64_t i = 0; i < bytes; i += 512) {
        for (int k = 0; k < 8; ++k) {
            __builtin_prefetch(data + i + 64 * k + ahead);
            sums[k] = sums[k] + load_ints(reinterpret_cast<const int32_t *>(data + i) + 16 * k);
        }
    }
    return largest((sums[0] + sums[1]) + (sums[2] + sums[3]) + ((sums[4] + sums[5]) + (sums[6] + sums[7])));
}

}  // namespace

HAVERSACK_TABLE(ReadingKernels, reading) = {load_all};
}  // namespace haversack::HAVERSACK_TARGET
