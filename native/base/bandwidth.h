// How fast this machine's memory is: the loops behind `haversack devices measure`.
#pragma once
#include <cstddef>

namespace haversack {

enum class Pages { small, huge };  // 4 KiB as they come, or aligned to 2 MiB with huge pages advised

// Each runs `rounds` passes on threads() threads over memory of its own and returns the seconds of the fastest,
// or a negative number when there is not that much memory.
double fastest_read(size_t bytes, Pages pages, int rounds);  // every byte is loaded once a pass
double fastest_copy(size_t bytes, Pages pages, int rounds);  // `bytes` are loaded and as many stored elsewhere

}  // namespace haversack
