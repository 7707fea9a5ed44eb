#include "base/memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstring>

#include "base/pool.h"

namespace haversack {
namespace {

constexpr size_t huge_page = size_t(2) << 20;

size_t mapped_size(size_t bytes) { return (bytes + huge_page - 1) / huge_page * huge_page; }

// Is all of this memory a mapping of a file that nobody can write through? Dropping any other memory would lose data.
bool only_read_from_file(const void *data, size_t bytes) {
#if defined(__linux__)
    std::FILE *maps = std::fopen("/proc/self/maps", "re");
    if (!maps) return false;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
    bool found = false;
    char line[4096];
    while (!found && std::fgets(line, sizeof line, maps)) {
        unsigned long low, high, inode;
        char rights[8];
        if (std::sscanf(line, "%lx-%lx %7s %*s %*s %lu", &low, &high, rights, &inode) != 4) continue;
        found = low <= begin && begin + bytes <= high && rights[1] == '-' && inode != 0;
    }
    std::fclose(maps);
    return found;
#else
    (void)data;
    (void)bytes;
    return false;
#endif
}

}  // namespace

void *huge_allocate(size_t bytes) {
    const size_t size = mapped_size(bytes), reserved = size + huge_page;
    void *start = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return nullptr;
    // Keep the aligned part only.
    const uintptr_t first = reinterpret_cast<uintptr_t>(start);
    const uintptr_t aligned = (first + huge_page - 1) / huge_page * huge_page;
    if (aligned > first) munmap(start, aligned - first);
    const size_t behind = first + reserved - (aligned + size);
    if (behind) munmap(reinterpret_cast<void *>(aligned + size), behind);
    void *data = reinterpret_cast<void *>(aligned);
#if defined(MADV_HUGEPAGE)
    madvise(data, size, MADV_HUGEPAGE);
#endif
    return data;
}

void huge_free(void *data, size_t bytes) { munmap(data, mapped_size(bytes)); }

void copy_dropping(void *to, const void *from, size_t bytes) {
    const bool droppable = only_read_from_file(from, bytes);
    constexpr uintptr_t page = 4096;
    char *target = static_cast<char *>(to);
    const char *source = static_cast<const char *>(from);
    for (size_t done = 0; done < bytes; done += copy_piece) {
        const size_t piece = bytes - done < copy_piece ? bytes - done : copy_piece;
        parallel(static_cast<int64_t>(piece), int64_t(1) << 20, [&](int64_t begin, int64_t end) {
            std::memcpy(target + done + begin, source + done + begin, static_cast<size_t>(end - begin));
        });
        if (!droppable) continue;
        const uintptr_t begin = (reinterpret_cast<uintptr_t>(source + done) + page - 1) / page * page;
        const uintptr_t end = reinterpret_cast<uintptr_t>(source + done + piece) / page * page;
        if (end > begin) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_DONTNEED);
    }
}

}  // namespace haversack
