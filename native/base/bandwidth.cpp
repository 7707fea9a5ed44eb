#include "base/bandwidth.h"

#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>

#include "base/memory.h"
#include "base/pool.h"
#include "reading.h"

namespace haversack {
namespace {

constexpr size_t piece = size_t(256) << 10;

// Memory that is given back at the end of a block, every page touched.
class Memory {
  public:
    Memory(size_t bytes, Pages pages) : bytes_(bytes), pages_(pages) {
        if (pages == Pages::huge) {
            data_ = static_cast<uint8_t *>(huge_allocate(bytes));
        } else {
            void *data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (data == MAP_FAILED) return;
#if defined(MADV_NOHUGEPAGE)
            madvise(data, bytes, MADV_NOHUGEPAGE);
#endif
            data_ = static_cast<uint8_t *>(data);
        }
        if (!data_) return;
        parallel(count(), 1, [this](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) std::memset(at(i), static_cast<int>(i | 1), length(i));
        });
    }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;
    ~Memory() {
        if (!data_) return;
        if (pages_ == Pages::huge)
            huge_free(data_, bytes_);
        else
            munmap(data_, bytes_);
    }

    bool there() const { return data_; }
    int64_t count() const { return static_cast<int64_t>((bytes_ + piece - 1) / piece); }
    uint8_t *at(int64_t i) const { return data_ + static_cast<size_t>(i) * piece; }
    size_t length(int64_t i) const {
        const size_t begin = static_cast<size_t>(i) * piece;
        return bytes_ - begin < piece ? bytes_ - begin : piece;
    }

  private:
    uint8_t *data_ = nullptr;
    size_t bytes_;
    Pages pages_;
};

template <typename Pass>
double fastest(int rounds, const Pass &pass) {
    double best = -1;
    for (int round = 0; round < rounds; ++round) {
        const auto start = std::chrono::steady_clock::now();
        pass();
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        if (best < 0 || took.count() < best) best = took.count();
    }
    return best;
}

}  // namespace

double fastest_read(size_t bytes, Pages pages, int rounds) {
    const Memory memory(bytes, pages);
    if (!memory.there()) return -1;
    const auto load_all = reading().load_all;
    std::atomic<int32_t> kept{0};
    return fastest(rounds, [&] {
        parallel(memory.count(), 4, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i)
                kept ^= load_all(memory.at(i), static_cast<int64_t>(memory.length(i) / 512 * 512));
        });
    });
}

double fastest_copy(size_t bytes, Pages pages, int rounds) {
    const Memory from(bytes, pages), to(bytes, pages);
    if (!from.there() || !to.there()) return -1;
    return fastest(rounds, [&] {
        parallel(from.count(), 4, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) std::memcpy(to.at(i), from.at(i), from.length(i));
        });
    });
}

}  // namespace haversack
