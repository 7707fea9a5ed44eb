// The rows that some token of a tile reads are listed once, then the threads take rows of the list. Each product is one chain
// of sums along the columns, 16 lanes wide, which are added in a fixed tree at the end: for floats the chain of matmul_float.cpp,
// so that a row has the bits of the dense product.
#include "neurons.h"

#include "base/pool.h"
#include "base/scratch.h"
#include "simd/float_kinds.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

constexpr int64_t least_work = int64_t(48) << 10;  // bytes read that are worth handing to a thread
#if defined(__AVX512F__) && !defined(HAVERSACK_PORTABLE)
constexpr int most_tokens = 4, rows_at_once = 4;
#else
constexpr int most_tokens = 2, rows_at_once = 2;
#endif

// Rows index[0 .. R - 1] times T tokens of x, `pitch` apart: to[r][t]. next: rows that will be read after these.
template <typename Type, int R, int T>
HAVERSACK_INLINE void dot_floats(const Channels &matrix, const int32_t *index, const int32_t *next, const float *x,
                                 int64_t pitch, float (*to)[T]) {
    Floats sums[R][T];
    for (auto &of_row : sums)
        for (Floats &one : of_row) one = zero();
    for (int64_t first = 0; first < matrix.outputs; first += matrix.block()) {
        const int64_t count = smaller_of(matrix.outputs - first, matrix.block()), stride = count * Type::bytes;
        const uint8_t *base = matrix.data + first * matrix.inputs * Type::bytes, *w[R], *coming[R];
        for (int r = 0; r < R; ++r) {
            w[r] = base + index[r] * stride;
            coming[r] = base + next[r] * stride;
        }
        const float *in = x + first;
        int64_t k = 0;
        for (; k + lanes <= count; k += lanes) {
            Floats weights[R];
            for (int r = 0; r < R; ++r) {
                prefetch_far(coming[r] + k * Type::bytes);
                weights[r] = Type::whole(w[r] + k * Type::bytes);
            }
            for (int t = 0; t < T; ++t) {
                const Floats input = load(in + t * pitch + k);
                for (int r = 0; r < R; ++r) sums[r][t] = fma(weights[r], input, sums[r][t]);
            }
        }
        if (k == count) continue;
        for (int r = 0; r < R; ++r) {
            const Floats weights = Type::part(w[r] + k * Type::bytes, count - k);
            for (int t = 0; t < T; ++t) sums[r][t] = fma(weights, load_part(in + t * pitch + k, count - k), sums[r][t]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) to[r][t] = sum(sums[r][t]);
}

// Half of a unit of 128 columns: four nibbles of each of 16 lanes, from number I on.
template <int I, int Last, int T>
HAVERSACK_INLINE void half(Quads weights, const float *x, int64_t pitch, Floats *own) {
    if constexpr (I < Last) {
        const Floats w = nibble_floats<I>(weights);
        for (int t = 0; t < T; ++t) own[t] = fma(w, load(x + t * pitch + I * lanes), own[t]);
        half<I + 1, Last, T>(weights, x, pitch, own);
    }
}

// The same for int4; x in the order of the nibbles.
template <int R, int T>
HAVERSACK_INLINE void dot_nibbles(const Channels &matrix, const int32_t *index, const int32_t *next, const float *x,
                                  int64_t pitch, float (*to)[T]) {
    Floats sums[R][T];
    for (auto &of_row : sums)
        for (Floats &one : of_row) one = zero();
    for (int64_t first = 0; first < matrix.padded(); first += matrix.block()) {
        const int64_t count = smaller_of(matrix.padded() - first, matrix.block());
        const int64_t header = matrix.header_bytes(count), stride = matrix.run_bytes(count);
        const uint8_t *base = matrix.data + matrix.run_bytes(matrix.block()) * matrix.inputs * (first / matrix.block());
        for (int64_t at = 0; at < count; at += sparse_unit) {
            for (int r = 0; r < R; ++r) {
                const uint8_t *run = base + index[r] * stride;
                prefetch_far(base + next[r] * stride + header + at / 2);
                uint16_t halves[2];
                float scales[2];
                std::memcpy(halves, run + at / matrix.group * 2, 2);
                std::memcpy(halves + 1, run + (at + 64) / matrix.group * 2, 2);
                store_part(scales, load_f16_part(halves, 2), 2);
                const Quads weights = load_quads(run + header + at / 2);
                Floats low[T], high[T];
                for (int t = 0; t < T; ++t) low[t] = high[t] = zero();
                half<0, 4, T>(weights, x + first + at, pitch, low);
                half<4, 8, T>(weights, x + first + at, pitch, high);
                for (int t = 0; t < T; ++t) sums[r][t] = fma(set(scales[1]), high[t], fma(set(scales[0]), low[t], sums[r][t]));
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) to[r][t] = sum(sums[r][t]);
}

template <int R, int T>
HAVERSACK_INLINE void dots(const Channels &matrix, const int32_t *index, const int32_t *next, const float *x, int64_t pitch,
                           float (*to)[T]) {
    switch (matrix.kind) {
    case Kind::f32: return dot_floats<F32, R, T>(matrix, index, next, x, pitch, to);
    case Kind::f16: return dot_floats<F16, R, T>(matrix, index, next, x, pitch, to);
    case Kind::bf16: return dot_floats<Bf16, R, T>(matrix, index, next, x, pitch, to);
    default: return dot_nibbles<R, T>(matrix, index, next, x, pitch, to);
    }
}

// T rows of x, each unit of 128 columns in the order of its nibbles: lane 4 L + r of nibble i is column 16 r + 4 L + i, 64
// further from i = 4 on.
const float *in_order(const Channels &matrix, const float *x, int tokens) {
    const int64_t padded = matrix.padded(), columns = matrix.outputs;
    float *ordered = static_cast<float *>(scratch(1, static_cast<size_t>(padded * tokens) * sizeof(float)));
    for (int t = 0; t < tokens; ++t)
        for (int64_t at = 0; at < padded; at += sparse_unit)
            for (int i = 0; i < 8; ++i)
                for (int lane = 0; lane < lanes; ++lane) {
                    const int64_t column = at + i / 4 * 64 + 16 * (lane % 4) + 4 * (lane / 4) + i % 4;
                    ordered[t * padded + at + i * lanes + lane] = column < columns ? x[t * columns + column] : 0.0f;
                }
    return ordered;
}

// The tokens first .. first + T of the call.
template <int T>
void tile(const NeuronCall &call, int64_t first) {
    const Channels &matrix = call.matrix;
    const int64_t rows = matrix.inputs;
    int32_t *list = static_cast<int32_t *>(scratch(0, static_cast<size_t>(rows) * sizeof(int32_t)));
    const float *gate = call.gate + first * rows;
    float *out = call.out + first * rows;
    int64_t count = 0;
    for (int64_t j = 0; j < rows; ++j) {
        bool some = false;
        for (int t = 0; t < T; ++t) {
            const bool reads = gate[t * rows + j] != 0.0f;
            some |= reads;
            if (!reads) out[t * rows + j] = 0.0f;
        }
        list[count] = static_cast<int32_t>(j);
        count += some;
    }
    const float *x = call.x + first * matrix.outputs;
    const int64_t pitch = matrix.packed() ? matrix.padded() : matrix.outputs;
    if (matrix.packed() && count) x = in_order(matrix, x, T);
    parallel((count + rows_at_once - 1) / rows_at_once, 1 + least_work / (matrix.channel_bytes() * rows_at_once),
             [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin * rows_at_once; i < smaller_of(end * rows_at_once, count);) {
                     const int64_t left = count - i;
                     float found[rows_at_once][T];
                     const int step = left >= rows_at_once ? rows_at_once : 1;
                     int32_t next[rows_at_once];
                     for (int r = 0; r < step; ++r) next[r] = list[smaller_of(i + step + r, count - 1)];
                     if (step == rows_at_once)
                         dots<rows_at_once, T>(matrix, list + i, next, x, pitch, found);
                     else
                         dots<1, T>(matrix, list + i, next, x, pitch, found);
                     for (int r = 0; r < step; ++r)
                         for (int t = 0; t < T; ++t) {
                             const int64_t place = t * rows + list[i + r];
                             if (gate[place] != 0.0f) out[place] = gate[place] * found[r][t];
                         }
                     i += step;
                 }
             });
}

template <int T>
HAVERSACK_INLINE void with_tokens(int tokens, const NeuronCall &call, int64_t first) {
    if constexpr (T > 0) {
        if (tokens == T) return tile<T>(call, first);
        with_tokens<T - 1>(tokens, call, first);
    }
}

void gated(const NeuronCall &call) {
    const int64_t tiles = (call.n + most_tokens - 1) / most_tokens;
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t first = call.n * tile / tiles, next = call.n * (tile + 1) / tiles;
        with_tokens<most_tokens>(static_cast<int>(next - first), call, first);
    }
}

}  // namespace

HAVERSACK_TABLE(NeuronKernels, neurons) = {gated};

}  // namespace haversack::HAVERSACK_TARGET
