#include "cache.h"

#include <initializer_list>

#include "base/pool.h"
#include "rows.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

void write_row(const Cache &cache, void *stored, float *scales, int64_t head, int64_t entry, const float *x) {
    const int64_t at = head * cache.capacity + entry;
    char *to = static_cast<char *>(stored) + at * cache.entry_bytes();
    switch (cache.kind) {
    case CacheKind::f32: std::memcpy(to, x, static_cast<size_t>(cache.entry_bytes())); break;
    case CacheKind::f16: store_f16_row(x, to, cache.width); break;
    case CacheKind::int8: scales[at] = store_int8_row(x, reinterpret_cast<int8_t *>(to), cache.width); break;
    }
}

void write_token(const Cache &cache, int64_t entry, const float *k, const float *v) {
    for (int64_t head = 0; head < cache.kv_heads; ++head) {
        write_row(cache, cache.keys, cache.key_scales, head, entry, k + head * cache.width);
        write_row(cache, cache.values, cache.value_scales, head, entry, v + head * cache.width);
    }
}

void write(const Cache &cache, int64_t start, const float *k, const float *v, int64_t n) {
    const int64_t numbers = cache.kv_heads * cache.width;
    parallel(n, 1 + 16384 / (numbers + 1), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) write_token(cache, start + t, k + t * numbers, v + t * numbers);
    });
}

void gather(const Cache &cache, int64_t start, const int64_t *indices, int64_t count) {
    const int64_t bytes = cache.entry_bytes();
    for (int64_t head = 0; head < cache.kv_heads; ++head)
        for (int64_t i = 0; i < count; ++i) {
            const int64_t from = head * cache.capacity + indices[i], to = head * cache.capacity + start + i;
            if (from == to) continue;
            for (void *stored : {cache.keys, cache.values}) {
                char *data = static_cast<char *>(stored);
                std::memcpy(data + to * bytes, data + from * bytes, static_cast<size_t>(bytes));
            }
            if (cache.kind != CacheKind::int8) continue;
            cache.key_scales[to] = cache.key_scales[from];
            cache.value_scales[to] = cache.value_scales[from];
        }
}

void heads_of(const NewEntries &e, int64_t token, float *x, int64_t heads, int64_t width, const float *norm) {
    for (int64_t h = 0; h < heads; ++h, x += width) {
        if (norm) rms_norm_row(x, norm, e.eps, e.offset, x, width);
        if (e.cos) rope_row(x, e.cos + token * e.pairs, e.sin + token * e.pairs, e.pairs, e.interleaved);
    }
}

void rope_write(const Cache &cache, int64_t start, const NewEntries &e) {
    const int64_t width = cache.width, of_q = e.heads * width, of_k = cache.kv_heads * width;
    parallel(e.n, 1 + 8192 / (of_q + 2 * of_k + 1), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            heads_of(e, t, e.q + t * of_q, e.heads, width, e.q_norm);
            heads_of(e, t, e.k + t * of_k, cache.kv_heads, width, e.k_norm);
            write_token(cache, start + t, e.k + t * of_k, e.v + t * of_k);
        }
    });
}

}  // namespace

HAVERSACK_TABLE(CacheKernels, cache) = {write, gather, rope_write};

}  // namespace haversack::HAVERSACK_TARGET
