#include "base/pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace haversack {
namespace {

// How long a waiting thread burns its core before it yields, and yields before it sleeps. Between two kernels of one token
// lie a few microseconds, so a worker normally meets the next one while spinning.
constexpr int spins = 1500;
constexpr auto yielding = std::chrono::microseconds(150);

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// True once `ready`; false when the time to sleep has come. One whose core is wanted yields it at once.
template <typename Ready>
bool wait_awake(const Ready &ready, bool wanted = false) {
    for (int i = wanted ? spins : 0; i < spins; ++i) {
        if (ready()) return true;
        relax();
    }
    const auto end = std::chrono::steady_clock::now() + yielding;
    do {
        if (ready()) return true;
        sched_yield();
    } while (std::chrono::steady_clock::now() < end);
    return ready();
}

thread_local bool inside_body = false;

class Pool {
  public:
    explicit Pool(int n) : size_(n) {
        for (int i = 1; i < n; ++i) workers_.emplace_back([this, i] { work(i); });
    }

    ~Pool() {
        stop_.store(true);
        epoch_.fetch_add(1);
        { std::lock_guard<std::mutex> lock(sleep_); }
        wake_.notify_all();
        for (std::thread &worker : workers_) worker.join();
    }

    int size() const { return size_; }

    void run(int64_t begin, int64_t total, int64_t grain, Body body, const void *context) {
        body_ = body;
        context_ = context;
        total_ = total;
        grain_ = grain;
        next_.store(begin, std::memory_order_relaxed);
        open_.store(true, std::memory_order_release);  // after the fields above
        call();
        take(0);
        // A worker announces itself (busy_) before it looks at open_; here open_ falls before busy_ is read. So either
        // the worker sees the call closed, or it is seen and waited for.
        open_.store(false);
        const auto idle = [this] { return busy_.load() == 0; };
        if (wait_awake(idle)) return;
        std::unique_lock<std::mutex> lock(sleep_);
        waiting_.store(true);
        done_.wait(lock, idle);
        waiting_.store(false);
    }

    // Takes a processor for a caller that runs beside the pool's call; false when each has a caller already.
    bool enter() {
        if (beside_.fetch_add(1) < size_ - 1) return true;
        beside_.fetch_sub(1);
        return false;
    }
    void leave() {
        beside_.fetch_sub(1);
        call();
    }

    int64_t piece_end(int64_t begin, int64_t total, int64_t grain) const {
        const int64_t share = (total - begin) / (2 * size_), end = begin + (share > grain ? share : grain);
        return end < total ? end : total;
    }

  private:
    // Wakes the workers, who look whether they can help.
    void call() {
        epoch_.fetch_add(1);
        if (sleepers_.load() > 0) {
            { std::lock_guard<std::mutex> lock(sleep_); }
            wake_.notify_all();
        }
    }

    // Whether a processor is left for thread `rank` of the pool; the caller, 0, has one whatever the others do.
    bool has_room(int rank) const { return rank == 0 || rank + beside_.load(std::memory_order_relaxed) < size_; }

    void take(int rank) {
        inside_body = true;
        int64_t begin = next_.load(std::memory_order_relaxed);
        while (begin < total_ && has_room(rank)) {
            const int64_t end = piece_end(begin, total_, grain_);
            if (!next_.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
            body_(context_, begin, end);
            begin = next_.load(std::memory_order_relaxed);
        }
        inside_body = false;
    }

    void work(int rank) {
        uint64_t seen = 0;
        for (;;) {
            const auto news = [&] { return epoch_.load() != seen; };
            if (!wait_awake(news, !has_room(rank))) {
                std::unique_lock<std::mutex> lock(sleep_);
                sleepers_.fetch_add(1);
                wake_.wait(lock, news);
                sleepers_.fetch_sub(1);
            }
            if (stop_.load()) return;
            seen = epoch_.load();
            busy_.fetch_add(1);
            if (open_.load()) take(rank);
            if (busy_.fetch_sub(1) == 1 && waiting_.load()) {
                { std::lock_guard<std::mutex> lock(sleep_); }
                done_.notify_one();
            }
        }
    }

    const int size_;
    std::vector<std::thread> workers_;
    std::mutex sleep_;
    std::condition_variable wake_, done_;
    // The call in progress.
    Body body_ = nullptr;
    const void *context_ = nullptr;
    int64_t total_ = 0, grain_ = 1;
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<uint64_t> epoch_{0};
    alignas(64) std::atomic<int> busy_{0};
    alignas(64) std::atomic<int> sleepers_{0};
    alignas(64) std::atomic<int> beside_{0};  // callers that run beside the pool's call
    std::atomic<bool> open_{false}, stop_{false}, waiting_{false};
};

// Never destroyed: at exit the workers sleep or spin until the process is gone, and touch nothing that is torn down.
struct State {
    std::mutex turn;  // the pool is at work on one call at a time
    std::atomic<Pool *> pool{nullptr};
    std::atomic<int> visitors{0};  // callers that may be beside the pool's call: it stays while there are any

    // The pool of n threads, for the one whose turn it is.
    Pool &pool_of(int n) {
        Pool *found = pool.load();
        if (found && found->size() == n) return *found;
        // A visitor announces itself before it looks for the pool: either it finds none, or it is seen and waited for.
        pool.store(nullptr);
        while (visitors.load() > 0) sched_yield();
        delete found;
        found = new Pool(n);
        pool.store(found);
        return *found;
    }

    // Runs pieces of a call on this thread while the pool is at work on another, until its turn comes. Returns where it
    // stopped: at 0 when every processor has a caller.
    int64_t run_beside(std::unique_lock<std::mutex> &held, int64_t total, int64_t grain, Body body, const void *context) {
        int64_t begin = 0;
        visitors.fetch_add(1);
        Pool *const found = pool.load();
        if (found && found->enter()) {
            inside_body = true;
            while (begin < total && !held.owns_lock()) {
                const int64_t end = found->piece_end(begin, total, grain);
                body(context, begin, end);
                begin = end;
                if (begin < total) static_cast<void>(held.try_lock());
            }
            inside_body = false;
            found->leave();
        }
        visitors.fetch_sub(1);
        return begin;
    }
};
std::atomic<State *> state{nullptr};
std::atomic<int> wanted{0};

int processors() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        const int n = CPU_COUNT(&set);
        if (n > 0) return n < most_threads ? n : most_threads;
    }
#endif
    const int n = static_cast<int>(std::thread::hardware_concurrency());
    return n < 1 ? 1 : n < most_threads ? n : most_threads;
}

// In a forked child the workers do not exist and the locks may be held by threads that do not either: begin anew and
// leave the parent's objects where they are.
void in_child() {
    state.store(nullptr);
    inside_body = false;
}

State &current() {
    State *found = state.load(std::memory_order_acquire);
    if (found) return *found;
    static std::once_flag once;
    std::call_once(once, [] { pthread_atfork(nullptr, nullptr, in_child); });
    State *fresh = new State;
    if (state.compare_exchange_strong(found, fresh)) return *fresh;
    delete fresh;
    return *found;
}

}  // namespace

void set_threads(int n) { wanted.store(n < 1 ? 1 : n > most_threads ? most_threads : n); }

int threads() {
    int n = wanted.load(std::memory_order_relaxed);
    if (n == 0) {
        const int found = processors();
        n = wanted.compare_exchange_strong(n, found) ? found : n;
    }
    return n;
}

void parallel_pieces(int64_t total, int64_t grain, Body body, const void *context) {
    if (total <= 0) return;
    if (grain < 1) grain = 1;
    const int n = threads();
    if (n == 1 || total <= grain || inside_body) return body(context, 0, total);
    State &mine = current();
    std::unique_lock<std::mutex> turn(mine.turn, std::try_to_lock);
    int64_t begin = 0;
    if (!turn.owns_lock()) {
        begin = mine.run_beside(turn, total, grain, body, context);
        if (begin == total) return;
        if (!turn.owns_lock()) turn.lock();
    }
    mine.pool_of(n).run(begin, total, grain, body, context);
}

}  // namespace haversack
