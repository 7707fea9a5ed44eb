#include "base/scratch.h"

#include <cstdlib>
#include <new>

namespace haversack {
namespace {

struct Block {
    void *data = nullptr;
    size_t size = 0;
    ~Block() { std::free(data); }
};

}  // namespace

void *scratch(int slot, size_t bytes) {
    static thread_local Block blocks[4];
    Block &block = blocks[slot];
    if (block.size < bytes) {
        const size_t size = (bytes + bytes / 4 + 4095) / 4096 * 4096;
        std::free(block.data);
        block.data = nullptr;
        block.size = 0;
        if (posix_memalign(&block.data, 64, size) != 0) throw std::bad_alloc();
        block.size = size;
    }
    return block.data;
}

}  // namespace haversack
