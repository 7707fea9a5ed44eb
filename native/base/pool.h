// One pool of threads for the whole process: starts at first use, is made anew in a forked child, is left alone at exit.
//
// parallel(total, grain, body) calls body(begin, end) for pieces that cover 0..total, on up to threads() threads, the caller
// among them, and returns when all are done. Pieces are large at first and shrink to `grain`, and whoever is free takes the
// next one: a thread that another process keeps from running costs its piece, never the whole call. `body` must not throw,
// must not touch Python, and must give results that do not depend on how 0..total is cut.
//
// A call from inside a body runs on that thread alone. One that comes while another thread's call is under way begins on its
// own thread, for which a thread of the pool steps back, and has the pool's help once that call is done: callers share the
// processors, and none waits for another as long as there are no more of them than threads().
#pragma once
#include <cstdint>

namespace haversack {

constexpr int most_threads = 64;

void set_threads(int n);  // 1..most_threads; takes effect at the next call
int threads();            // set_threads' value, else the number of processors this process may use

using Body = void (*)(const void *context, int64_t begin, int64_t end);
void parallel_pieces(int64_t total, int64_t grain, Body body, const void *context);

template <typename Function>
static inline void parallel(int64_t total, int64_t grain, const Function &function) {
    parallel_pieces(
        total, grain,
        [](const void *context, int64_t begin, int64_t end) { (*static_cast<const Function *>(context))(begin, end); },
        &function);
}

}  // namespace haversack
