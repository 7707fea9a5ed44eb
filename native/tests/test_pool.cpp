// The pool, and what the kernels rest on.
#include <atomic>
#include <thread>

#include "base/pool.h"
#include "tests/check.h"

using namespace haversack;

HAVERSACK_TEST(pool_covers_every_item_once) {
    for (int n : {1, 2, 3, 8}) {
        set_threads(n);
        for (long total : {1L, 2L, 17L, 1000L, 100003L}) {
            std::vector<std::atomic<int>> seen(static_cast<size_t>(total));
            parallel(total, 3, [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; ++i) seen[static_cast<size_t>(i)].fetch_add(1);
            });
            for (auto &count : seen) CHECK(count.load() == 1);
        }
    }
    set_threads(2);
}

HAVERSACK_TEST(pool_serves_several_callers) {
    set_threads(3);
    std::atomic<long> sum{0};
    std::vector<std::thread> callers;
    for (int c = 0; c < 4; ++c)
        callers.emplace_back([&] {
            for (int i = 0; i < 2000; ++i) parallel(64, 1, [&](int64_t begin, int64_t end) { sum.fetch_add(end - begin); });
        });
    for (auto &caller : callers) caller.join();
    CHECK(sum.load() == 4L * 2000 * 64);
    set_threads(2);
}
