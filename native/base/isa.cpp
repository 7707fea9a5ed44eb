#include "base/isa.h"

#include <atomic>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#ifndef HWCAP_ASIMDDP
#define HWCAP_ASIMDDP (1UL << 20)
#endif
#endif

namespace haversack {
namespace {

struct Entry {
    const char *name;
    Isa isa;
};

#if defined(__x86_64__)
constexpr Entry entries[] = {{"portable", Isa::portable}, {"avx2", Isa::avx2}, {"avx512", Isa::avx512}};
const char *const names[] = {"portable", "avx2", "avx512", nullptr};
#elif defined(__aarch64__)
constexpr Entry entries[] = {{"portable", Isa::portable}, {"neon", Isa::neon}, {"dotprod", Isa::dotprod}};
const char *const names[] = {"portable", "neon", "dotprod", nullptr};
#else
constexpr Entry entries[] = {{"portable", Isa::portable}};
const char *const names[] = {"portable", nullptr};
#endif

#if defined(__x86_64__)
bool has_f16c() {  // not every compiler knows its name
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 29));
}
#endif

bool runs_here(Isa isa) {
    switch (isa) {
    case Isa::portable: return true;
#if defined(__x86_64__)
    case Isa::avx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    case Isa::avx512:
        return runs_here(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
#elif defined(__aarch64__)
    case Isa::neon: return true;
#if defined(__linux__)
    case Isa::dotprod: return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
    case Isa::dotprod: return true;
#endif
#endif
    default: return false;
    }
}

Isa best() {
    Isa found = Isa::portable;
    for (const Entry &entry : entries)
        if (runs_here(entry.isa)) found = entry.isa;
    return found;
}

std::atomic<int> active{-1};

}  // namespace

const char *const *isa_names() { return names; }

bool isa_supported(const char *name) {
    for (const Entry &entry : entries)
        if (std::strcmp(entry.name, name) == 0) return runs_here(entry.isa);
    return false;
}

bool select_isa(const char *name) {
    for (const Entry &entry : entries)
        if (std::strcmp(entry.name, name) == 0 && runs_here(entry.isa)) {
            active.store(static_cast<int>(entry.isa), std::memory_order_relaxed);
            return true;
        }
    return false;
}

Isa active_isa() {
    int isa = active.load(std::memory_order_relaxed);
    if (isa < 0) active.store(isa = static_cast<int>(best()), std::memory_order_relaxed);
    return static_cast<Isa>(isa);
}

const char *active_isa_name() {
    const Isa isa = active_isa();
    for (const Entry &entry : entries)
        if (entry.isa == isa) return entry.name;
    return "portable";
}

}  // namespace haversack
