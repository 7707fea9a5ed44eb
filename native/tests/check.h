// A test states a property in a function of its own; the program runs them all, for every instruction set of this processor.
//   HAVERSACK_TEST(name) { CHECK(condition); CHECK_NEAR(a, b, tolerance); }
#pragma once
#include <cmath>
#include <cstdio>
#include <vector>

namespace haversack::tests {
struct Test {
    const char *name;
    void (*run)();
};
inline std::vector<Test> &all() {
    static std::vector<Test> list;
    return list;
}
inline int &failures() {
    static int count = 0;
    return count;
}
struct Add {
    Add(const char *name, void (*run)()) { all().push_back({name, run}); }
};
// Pseudo-random numbers that are the same everywhere.
struct Random {
    unsigned long long state;
    explicit Random(unsigned long long seed) : state(seed * 2654435769u + 12345) {}
    unsigned bits() {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return static_cast<unsigned>(state >> 33);
    }
    float normal() {  // near enough: a sum of 12 uniform numbers
        float x = -6.0f;
        for (int i = 0; i < 12; ++i) x += static_cast<float>(bits() & 0xffff) / 65536.0f;
        return x;
    }
    int below(int n) { return static_cast<int>(bits() % static_cast<unsigned>(n)); }
};
}  // namespace haversack::tests

#define HAVERSACK_TEST(name)                                                                                                   \
    static void test_##name();                                                                                                 \
    static const haversack::tests::Add add_##name(#name, test_##name);                                                         \
    static void test_##name()
#define CHECK(condition)                                                                                                       \
    do {                                                                                                                       \
        if (!(condition)) {                                                                                                    \
            std::printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                                                \
            ++haversack::tests::failures();                                                                                    \
            return;                                                                                                            \
        }                                                                                                                      \
    } while (0)
#define CHECK_NEAR(a, b, tolerance)                                                                                            \
    do {                                                                                                                       \
        const double left_ = (a), right_ = (b);                                                                                \
        if (!(std::fabs(left_ - right_) <= (tolerance))) {                                                                     \
            std::printf("%s:%d: %s = %.9g, %s = %.9g\n", __FILE__, __LINE__, #a, left_, #b, right_);                           \
            ++haversack::tests::failures();                                                                                    \
            return;                                                                                                            \
        }                                                                                                                      \
    } while (0)
