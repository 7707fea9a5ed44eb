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
    for (const int n : {2, 3}) {
        set_threads(n);
        std::atomic<long> sum{0};
        std::vector<std::thread> callers;
        for (int c = 0; c < 4; ++c)
            callers.emplace_back([&] {
                for (int i = 0; i < 1500; ++i) parallel(64, 1, [&](int64_t begin, int64_t end) { sum.fetch_add(end - begin); });
            });
        for (auto &caller : callers) caller.join();
        CHECK(sum.load() == 4L * 1500 * 64);
    }
    set_threads(2);
}

HAVERSACK_TEST(a_caller_does_not_wait_for_anothers_call) {
    for (const int n : {2, 3}) {
        set_threads(n);
        std::atomic<bool> begun{false}, other{false};
        std::thread first([&] {
            parallel(2 * n, 1, [&](int64_t, int64_t) {
                begun.store(true);
                while (!other.load()) std::this_thread::yield();  // for ever, if the second waited for its turn
            });
        });
        while (!begun.load()) std::this_thread::yield();
        std::atomic<int64_t> sum{0};
        parallel(1000, 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) sum.fetch_add(i);
            parallel(10, 1, [&](int64_t from, int64_t to) { sum.fetch_add(to - from); });
        });
        CHECK(sum.load() >= 999 * 500 + 10);
        other.store(true);
        first.join();
    }
    set_threads(2);
}

HAVERSACK_TEST(the_pool_may_change_its_size_under_callers) {
    std::atomic<long> sum{0};
    std::vector<std::thread> callers;
    for (int c = 0; c < 3; ++c)
        callers.emplace_back([&, c] {
            for (int i = 0; i < 300; ++i) {
                if (c == 0) set_threads(2 + i % 3);
                parallel(64, 1, [&](int64_t begin, int64_t end) { sum.fetch_add(end - begin); });
            }
        });
    for (auto &caller : callers) caller.join();
    CHECK(sum.load() == 3L * 300 * 64);
    set_threads(2);
}
