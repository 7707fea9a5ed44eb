#include "base/pooled.h"

#include "base/pool.h"

namespace haversack {
namespace {

constexpr int64_t least_work = 1 << 17;  // multiplications that are worth handing to a thread

}  // namespace

void attend_runs(const Runs &runs, const Attention &call) {
    const int64_t width = runs.whole.width, row = call.heads * width;
    const auto attend_run = [&](const Run &run) {
        Attention part = call;
        part.q += run.row * row;
        part.out += run.row * row;
        part.n = part.fresh = run.rows;
        part.length = run.entry;
        part.start = call.start ? call.start + run.row : nullptr;
        part.mask = nullptr;
        attend().attention(runs.cache(run.slot), part);
    };
    int64_t single = 0, seen = 0;
    for (int64_t i = 0; i < runs.count; ++i) {
        if (runs.list[i].rows == 1)
            ++single, seen += runs.list[i].entry + 1;
        else
            attend_run(runs.list[i]);
    }
    if (single == 0) return;
    const int64_t work = 1 + seen * row / single;
    parallel(runs.count, 1 + least_work / work, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            if (runs.list[i].rows == 1) attend_run(runs.list[i]);
    });
}

void write_runs(const Runs &runs, const NewEntries &entries) {
    const int64_t width = runs.whole.width, of_q = entries.heads * width, of_k = runs.whole.kv_heads * width;
    for (int64_t i = 0; i < runs.count; ++i) {
        const Run &run = runs.list[i];
        NewEntries part = entries;
        part.q += run.row * of_q;
        part.k += run.row * of_k;
        part.v += run.row * of_k;
        part.n = run.rows;
        if (entries.cos) {
            part.cos += run.row * entries.pairs;
            part.sin += run.row * entries.pairs;
        }
        cache().rope_write(runs.cache(run.slot), run.entry, part);
    }
}

}  // namespace haversack
