// Which instruction set runs: found at first use, or chosen by name. Every kernel family has one table of functions
// per instruction set; HAVERSACK_FAMILY gives the table of the set that is active.
#pragma once

namespace haversack {

enum class Isa { portable, avx2, avx512, neon, dotprod };

// The names a processor of this type could have, best last; ends with nullptr.
const char *const *isa_names();
bool isa_supported(const char *name);  // can this very processor run it?
bool select_isa(const char *name);     // false (and no change) when unknown or not supported
Isa active_isa();
const char *active_isa_name();

}  // namespace haversack

#if defined(__x86_64__)
#define HAVERSACK_FAMILY(Table, name)                                                                                          \
    namespace haversack::portable {                                                                                            \
    extern const Table name##_table;                                                                                           \
    }                                                                                                                          \
    namespace haversack::avx2 {                                                                                                \
    extern const Table name##_table;                                                                                           \
    }                                                                                                                          \
    namespace haversack::avx512 {                                                                                              \
    extern const Table name##_table;                                                                                           \
    }                                                                                                                          \
    namespace haversack {                                                                                                      \
    [[maybe_unused]] static inline const Table &name() {                                                                       \
        const Isa isa = active_isa();                                                                                          \
        if (isa == Isa::avx512) return avx512::name##_table;                                                                   \
        if (isa == Isa::avx2) return avx2::name##_table;                                                                       \
        return portable::name##_table;                                                                                         \
    }                                                                                                                          \
    }
#elif defined(__aarch64__)
#define HAVERSACK_FAMILY(Table, name)                                                                                          \
    namespace haversack::portable {                                                                                            \
    extern const Table name##_table;                                                                                           \
    }                                                                                                                          \
    namespace haversack::neon {                                                                                                \
    extern const Table name##_table;                                                                                           \
    }                                                                                                                          \
    namespace haversack::dotprod {                                                                                             \
    extern const Table name##_table;                                                                                           \
    }                                                                                                                          \
    namespace haversack {                                                                                                      \
    [[maybe_unused]] static inline const Table &name() {                                                                       \
        const Isa isa = active_isa();                                                                                          \
        if (isa == Isa::dotprod) return dotprod::name##_table;                                                                 \
        if (isa == Isa::neon) return neon::name##_table;                                                                       \
        return portable::name##_table;                                                                                         \
    }                                                                                                                          \
    }
#else
#define HAVERSACK_FAMILY(Table, name)                                                                                          \
    namespace haversack::portable {                                                                                            \
    extern const Table name##_table;                                                                                           \
    }                                                                                                                          \
    namespace haversack {                                                                                                      \
    [[maybe_unused]] static inline const Table &name() { return portable::name##_table; }                                      \
    }
#endif
