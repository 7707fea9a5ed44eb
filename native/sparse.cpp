// Row-skipping products: the active inputs are listed once, then the threads take outputs, 128 at a time (int4: as many as
// there are for each), and each walks the list. A thread computes whole outputs, never part of a sum: each is one chain over
// the active inputs in order (int4 with int8 activations: over groups of 64 channels, exact inside). Several tokens pass
// together over the union of their lists, with zeros where one has none, which changes no bit.
#include "sparse.h"

#include "base/pool.h"
#include "base/scratch.h"
#include "simd/float_kinds.h"
#include "simd/interleave.h"
#include "simd/simd.h"
#include "simd/unrolled.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

constexpr int64_t least_work = int64_t(48) << 10;  // bytes read that are worth handing to a thread
constexpr int64_t chunk = 32;                      // channels that share a scale of int8 activations
constexpr float smallest = 1e-30f;                 // below this, a group of inputs counts as zeros
#if defined(__AVX512F__) && !defined(HAVERSACK_PORTABLE)
constexpr int most_tokens = 6, most_packed_tokens = 2;
#else
constexpr int most_tokens = 2, most_packed_tokens = 1;
#endif

// The inputs that some token of a tile reads: inputs[i * T + t] is token t's input index[i], 0 where it has none.
struct List {
    int32_t *index;
    float *inputs;
    int64_t count;
};

template <int N>
struct Count {
    static constexpr int value = N;
};

// A part of one block: outputs from .. to, counted from the block's first, whose channels start at `data`, `stride` apart.
struct Part {
    const Channels *of;
    const uint8_t *data;
    int64_t stride, from, to;
    int64_t codes;  // int4: where in a channel the numbers begin, behind the scales
};

Part part_of(const Channels &channels, int64_t first, int64_t last) {
    const int64_t size = channels.block(), block = first / size;
    const int64_t count = smaller_of(channels.padded() - block * size, size);
    const uint8_t *data = channels.data + channels.run_bytes(size) * channels.inputs * block;
    return {&channels,
            data,
            channels.run_bytes(count),
            first - block * size,
            smaller_of(last - block * size, count),
            channels.packed() ? channels.header_bytes(count) : 0};
}

// Four channels at a time over all outputs of the part: long runs that the processor fetches well, and sums that stay in the
// first-level cache. One token alone waits for memory: call for the four channels that come next.
template <typename Type, int T>
void accumulate_floats(const Part &part, const List &list, float *sums, int64_t pitch) {
    const int64_t outputs = part.to - part.from, whole = outputs / lanes * lanes;
    const uint8_t *base = part.data + part.from * Type::bytes;
    for (int64_t i = 0; i < list.count; i += 4) {
        const uint8_t *runs[4], *next[4];
        Floats inputs[4][T];
        for (int64_t k = 0; k < 4; ++k) {  // behind the last channel any will do, since its input is 0
            const int64_t last = list.count - 1, at = smaller_of(i + k, last);
            runs[k] = base + list.index[at] * part.stride;
            next[k] = base + list.index[smaller_of(i + k + 4, last)] * part.stride;
            for (int t = 0; t < T; ++t) inputs[k][t] = i + k <= last ? set(list.inputs[at * T + t]) : zero();
        }
        for (int64_t o = 0; o < whole; o += lanes) {
            Floats weights[4];
            for (int k = 0; k < 4; ++k) {
                if constexpr (T == 1) prefetch_far(next[k] + o * Type::bytes);
                weights[k] = Type::whole(runs[k] + o * Type::bytes);
            }
            for (int t = 0; t < T; ++t) {
                Floats own = load(sums + t * pitch + o);
                for (int k = 0; k < 4; ++k) own = fma(weights[k], inputs[k][t], own);
                store(sums + t * pitch + o, own);
            }
        }
        if (whole == outputs) continue;
        for (int t = 0; t < T; ++t) {
            float *to = sums + t * pitch + whole;
            Floats own = load_part(to, outputs - whole);
            for (int k = 0; k < 4; ++k)
                own = fma(Type::part(runs[k] + whole * Type::bytes, outputs - whole), inputs[k][t], own);
            store_part(to, own, outputs - whole);
        }
    }
}

// int4 with f32 activations. Lane 4 L + r of nibble i (+ 4 in the high halves) is output 16 r + 4 L + i (+ 64) of the unit.
template <int I, int T>
HAVERSACK_INLINE void nibbles(Quads weights, const float (*inputs)[2], Floats (*own)[T]) {
    if constexpr (I < 8) {
        const Floats w = nibble_floats<I>(weights);
        for (int t = 0; t < T; ++t) own[I][t] = fma(w, set(inputs[t][I / 4]), own[I][t]);
        nibbles<I + 1, T>(weights, inputs, own);
    }
}

template <int T>
void accumulate_nibbles(const Part &part, const List &list, float *sums, int64_t pitch) {
    const int64_t group = part.of->group;
    for (int64_t at = part.from; at < part.to; at += sparse_unit, sums += sparse_unit) {
        Floats own[8][T];
        for (auto &of_nibble : own)
            for (Floats &one : of_nibble) one = zero();
        for (int64_t i = 0; i < list.count; ++i) {
            const uint8_t *run = part.data + list.index[i] * part.stride;
            uint16_t halves[2];
            float scales[2], inputs[T][2];
            std::memcpy(halves, run + at / group * 2, 2);
            std::memcpy(halves + 1, run + (at + 64) / group * 2, 2);
            store_part(scales, load_f16_part(halves, 2), 2);
            for (int t = 0; t < T; ++t)
                for (int h = 0; h < 2; ++h) inputs[t][h] = list.inputs[i * T + t] * scales[h];
            nibbles<0, T>(load_quads(run + part.codes + at / 2), inputs, own);
        }
        for (int t = 0; t < T; ++t)
            for (int i = 0; i < 8; ++i) {
                float spread[lanes];
                store(spread, own[i][t]);
                for (int lane = 0; lane < lanes; ++lane)
                    sums[t * pitch + i / 4 * 64 + 16 * (lane % 4) + 4 * (lane / 4) + i % 4] += spread[lane];
            }
    }
}

// int4 with int8 activations: input times scale, which differs for every channel and group of outputs, is rounded to int8 with
// one scale for each chunk of channels and group; four channels are then multiplied at a time.
constexpr int64_t most_groups = sparse_int4_block / 64;
template <int T>
struct Rounded {
    int32_t quads[T][chunk / 4][most_groups];  // of four channels, for each group of the block
    float scales[T][most_groups];
    int32_t starts[T][most_groups];  // what sums start from, since stored weights carry an offset of 8
};

template <int T>
HAVERSACK_INLINE void round_inputs(const uint8_t *const *runs, const float *inputs, int64_t count, int64_t first,
                                   int64_t groups, Rounded<T> &to) {
    for (int t = 0; t < T; ++t)
        for (int64_t g = first / lanes * lanes; g < groups; g += lanes) {
            Floats most = zero(), terms[chunk];
            for (int64_t i = 0; i < count; ++i) {
                terms[i] = load_f16(runs[i] + 2 * g) * set(inputs[i * T + t]);
                most = max(abs(terms[i]), most);
            }
            const Mask none = less(most, set(smallest));
            const Floats inverse = select(none, zero(), set(127.0f) / most);
            store(to.scales[t] + g, select(none, zero(), most / set(127.0f)));
            Ints total = set_ints(0);
            for (int64_t i = 0; i < count; i += 4) {
                Ints quad = set_ints(0);
                const auto take = [&](int64_t k, auto shift) {
                    if (i + k >= count) return;
                    const Ints one = to_ints(terms[i + k] * inverse);
                    total = total + one;
                    quad = quad | shift_left<decltype(shift)::value>(one & set_ints(255));
                };
                take(0, Count<0>{});
                take(1, Count<8>{});
                take(2, Count<16>{});
                take(3, Count<24>{});
                store_ints(to.quads[t][i / 4] + g, quad);
            }
            store_ints(to.starts[t] + g, set_ints(0) - shift_left<3>(total));
        }
}

// Channels that go through the outputs of a part together are those of up to four chunks: sums are read and written once for
// all of them, and memory is called for long before it is read.
constexpr int most_chunks = 4;
template <int T>
struct Chunk {
    const uint8_t *runs[chunk + 3];
    int64_t count;
    Rounded<T> rounded;
};

// Calls for the numbers that a part will read next, channel by channel: 256 bytes for each step over four channels, which
// take as many.
struct Ahead {
    const Part &part;
    const List &list;
    const int64_t steps;  // of a channel
    int64_t channel = 0, end = 0, left = 0;
    const uint8_t *at = nullptr;

    // Those up to number `stop` of the list come next; their scales, bytes scales .. scales_end, are called for at once.
    void begin(int64_t stop, int64_t scales, int64_t scales_end) {
        for (int64_t i = end; i < stop; ++i)
            for (int64_t byte = scales; byte < scales_end; byte += 64)
                prefetch_far(part.data + list.index[i] * part.stride + byte);
        end = stop;
    }
    bool step() {
        if (left == 0) {
            if (channel == end) return false;
            at = part.data + list.index[channel++] * part.stride + part.codes + part.from / 2;
            left = steps;
        }
        for (int line = 0; line < 4; ++line) prefetch_far(at + 64 * line);
        at += 256;
        --left;
        return true;
    }
};

// One unit of 128 outputs over the channels of some chunks; `low` and `high` are the groups of its halves.
template <int T>
HAVERSACK_INLINE void unit(const Chunk<T> *chunks, int64_t count, int64_t place, int64_t low, int64_t high, float *sums,
                           int64_t pitch, Ahead &ahead) {
    static_assert(chunk <= 32, "dot_few takes eight times four channels");
    Floats total[8 * T];  // of half h, sixteen r and token t at [(t * 2 + h) * 4 + r]
    unrolled<8 * T>([&](auto i) HAVERSACK_ALWAYS { total[i] = load(sums + i / 8 * pitch + i % 8 * lanes); });
    for (const Chunk<T> *one = chunks; one < chunks + count; ++one) {
        const Rounded<T> &rounded = one->rounded;
        Ints starts[2 * T];
        unrolled<2 * T>([&](auto i) HAVERSACK_ALWAYS { starts[i] = set_ints(rounded.starts[i / 2][i % 2 ? high : low]); });
        Few few[8 * T];
        unrolled<8 * T>([&](auto i) HAVERSACK_ALWAYS { few[i] = begin_few(starts[i / 4]); });
        for (int64_t k = 0; k < one->count; k += 4) {
            Quads channels[4], quads[4];
            unrolled<4>([&](auto i) HAVERSACK_ALWAYS { channels[i] = load_quads(one->runs[k + i] + place); });
            if constexpr (T == 1) ahead.step();
            interleave_quads(channels, quads);
            unrolled<4>([&](auto r) HAVERSACK_ALWAYS {
                const Quads lower = low_nibbles(quads[r]), upper = high_nibbles(quads[r]);
                unrolled<T>([&](auto t) HAVERSACK_ALWAYS {
                    few[t * 8 + r] = dot_few(few[t * 8 + r], lower, rounded.quads[t][k / 4][low]);
                    few[t * 8 + 4 + r] = dot_few(few[t * 8 + 4 + r], upper, rounded.quads[t][k / 4][high]);
                });
            });
        }
        unrolled<8 * T>([&](auto i) HAVERSACK_ALWAYS {
            const Floats whole = to_floats(end_few(few[i], starts[i / 4]));
            total[i] = fma(whole, set(rounded.scales[i / 8][i / 4 % 2 ? high : low]), total[i]);
        });
    }
    unrolled<8 * T>([&](auto i) HAVERSACK_ALWAYS { store(sums + i / 8 * pitch + i % 8 * lanes, total[i]); });
}

template <int T>
void accumulate_int4(const Part &part, const List &list, float *sums, int64_t pitch) {
    const int64_t group = part.of->group, groups = (part.to + group - 1) / group, units = (part.to - part.from) / sparse_unit;
    const int64_t scales = part.from / group * 2 / 64 * 64;
    // The listed channels of the chunk that holds number `from` end here.
    const auto chunk_end = [&](int64_t from) {
        const int64_t last = (list.index[from] / chunk + 1) * chunk;
        while (from < list.count && list.index[from] < last) ++from;
        return from;
    };
    const auto chunks_end = [&](int64_t from) {
        for (int i = 0; i < most_chunks && from < list.count; ++i) from = chunk_end(from);
        return from;
    };
    Chunk<T> chunks[most_chunks];
    Ahead ahead = {part, list, (units + 3) / 4};
    int64_t next = chunks_end(0);
    if constexpr (T == 1) ahead.begin(next, scales, groups * 2);
    for (int64_t begin = 0; begin < list.count;) {
        const int64_t end = next;
        next = chunks_end(end);
        if constexpr (T == 1)
            while (ahead.step()) continue;  // what is left of these channels
        int64_t count = 0;
        for (; begin < end; ++count) {
            Chunk<T> &one = chunks[count];
            const int64_t stop = chunk_end(begin);
            for (int64_t i = begin; i < stop; ++i) one.runs[i - begin] = part.data + list.index[i] * part.stride;
            one.count = stop - begin;
            round_inputs<T>(one.runs, list.inputs + begin * T, one.count, part.from / group, groups, one.rounded);
            for (int64_t i = one.count; i % 4; ++i) one.runs[i] = one.runs[0];  // any will do, since its input is 0
            begin = stop;
        }
        if constexpr (T == 1) ahead.begin(next, scales, groups * 2);
        const int shift = group == 64 ? 6 : 7;
        for (int64_t at = part.from; at < part.to; at += sparse_unit)
            unit<T>(chunks, count, part.codes + at / 2, at >> shift, (at + 64) >> shift, sums + at - part.from, pitch, ahead);
    }
}

template <int T>
void accumulate(const Part &part, const List &list, bool int8, float *sums, int64_t pitch) {
    if (part.of->packed()) {
        if constexpr (T <= most_packed_tokens) (int8 ? accumulate_int4<T> : accumulate_nibbles<T>)(part, list, sums, pitch);
        return;
    }
    const Kind kind = part.of->kind;
    (kind == Kind::f32   ? accumulate_floats<F32, T>
     : kind == Kind::f16 ? accumulate_floats<F16, T>
                         : accumulate_floats<Bf16, T>)(part, list, sums, pitch);
}

// One row's sums to its outputs. Adding 0 makes a -0 that rounding left behind a 0, whichever inputs were skipped.
HAVERSACK_INLINE void finish(const float *sums, int64_t n, float *out, const float *add, const float *bias) {
    for (int64_t i = 0; i < n; i += lanes) {
        const int64_t left = smaller_of<int64_t>(n - i, lanes);
        Floats value = load(sums + i) + zero();
        if (add) value = value + load_part(add + i, left);
        if (bias) value = value + load_part(bias + i, left);
        store_part(out + i, value, left);
    }
}

// The tokens first .. first + T of the call.
template <int T>
void tile(const SparseProduct &product, SparseCall &call, int64_t first) {
    const Channels &weights = product.weights;
    const int64_t inputs = weights.inputs, rank = product.down.outputs;
    const size_t room = static_cast<size_t>(inputs + rank) * 2;
    int32_t *indices = static_cast<int32_t *>(scratch(0, room * sizeof(int32_t)));
    float *numbers = static_cast<float *>(scratch(1, (room * T + static_cast<size_t>(rank)) * sizeof(float)));
    List active = {indices, numbers, 0}, rest = {indices + inputs, numbers + inputs * T, 0};
    bool finite[T];
    for (int t = 0; t < T; ++t) finite[t] = true;
    const float *x = call.x + first * inputs;
    int64_t seen = 0;
    for (int64_t j = 0; j < inputs; ++j) {
        bool some = false, others = false;
        float *to = active.inputs + active.count * T, *left = rest.inputs + rest.count * T;
        for (int t = 0; t < T; ++t) {
            const float value = x[t * inputs + j], size = __builtin_fabsf(value);
            const bool whole = call.whole && call.whole[first + t];
            const bool reads = whole || !(size <= product.limits[j]);
            if (!whole) seen += reads;
            if (reads && !(size < __builtin_inff())) finite[t] = false;
            to[t] = reads ? value : 0.0f;
            left[t] = reads ? 0.0f : value;
            some |= reads;
            others |= !reads;
        }
        active.index[active.count] = rest.index[rest.count] = static_cast<int32_t>(j);
        active.count += some;
        rest.count += others;
    }
    call.counts[1] += seen;
    for (int t = 0; t < T; ++t) call.counts[0] += !(call.whole && call.whole[first + t]);

    List few = {indices + 2 * inputs, numbers + 2 * inputs * T, 0};  // the low-rank product's inner numbers
    if (rank > 0 && rest.count > 0) {
        for (int64_t i = 0; i < rank; ++i) few.index[i] = static_cast<int32_t>(i);
        few.count = rank;
        parallel((rank + lanes - 1) / lanes, 1 + least_work / (rest.count * lanes * product.down.number_bytes()),
                 [&](int64_t begin, int64_t end) {
                     float sums[T][sparse_block];
                     for (int64_t at = begin * lanes; at < smaller_of(end * lanes, rank);) {
                         const int64_t stop = smaller_of(smaller_of(end * lanes, rank), (at / sparse_block + 1) * sparse_block);
                         std::memset(sums, 0, sizeof sums);
                         accumulate<T>(part_of(product.down, at, stop), rest, false, sums[0], sparse_block);
                         for (int t = 0; t < T; ++t)
                             for (int64_t i = at; i < stop; ++i) few.inputs[i * T + t] = sums[t][i - at];
                         at = stop;
                     }
                 });
    }
    const int64_t outputs = weights.outputs, units = (outputs + sparse_unit - 1) / sparse_unit;
    const int64_t work = 1 + active.count * weights.run_bytes(sparse_unit) + few.count * sparse_unit * 4;
    // int4: as few pieces as threads. A channel's numbers are then fetched in long runs, and each piece rounds inputs for itself.
    const int64_t share = weights.packed() ? ((units + threads() - 1) / threads() + 3) / 4 * 4 : 1;
    parallel(units, larger_of(1 + least_work / work, share), [&](int64_t begin, int64_t end) {
        float sums[T][sparse_int4_block];
        const int64_t last = smaller_of(end * sparse_unit, outputs);
        for (int64_t at = begin * sparse_unit; at < last;) {
            // Up to the end of a block of either matrix.
            const int64_t size = few.count ? sparse_block : weights.block();
            const int64_t stop = smaller_of(last, (at / size + 1) * size);
            const int64_t count = stop - at;
            for (int t = 0; t < T; ++t)
                std::memset(sums[t], 0, static_cast<size_t>((count + sparse_unit - 1) / sparse_unit * sparse_unit) * 4);
            if (few.count) accumulate<T>(part_of(product.up, at, stop), few, false, sums[0], sparse_int4_block);
            const int64_t padded = weights.packed() ? (stop + sparse_unit - 1) / sparse_unit * sparse_unit : stop;
            accumulate<T>(part_of(weights, at, padded), active, call.int8, sums[0], sparse_int4_block);
            for (int t = 0; t < T; ++t) {
                if (call.int8 && weights.packed() && !finite[t])
                    for (int64_t i = 0; i < count; ++i) sums[t][i] = __builtin_nanf("");
                const int64_t place = (first + t) * outputs + at;
                finish(sums[t], count, call.out + place, call.add ? call.add + place : nullptr,
                       call.bias ? call.bias + at : nullptr);
            }
            at = stop;
        }
    });
}

template <int T>
HAVERSACK_INLINE void with_tokens(int tokens, const SparseProduct &product, SparseCall &call, int64_t first) {
    if constexpr (T > 0) {
        if (tokens == T) return tile<T>(product, call, first);
        with_tokens<T - 1>(tokens, product, call, first);
    }
}

void multiply(const SparseProduct &product, SparseCall &call) {
    const int64_t most = product.weights.packed() ? most_packed_tokens : most_tokens;
    const int64_t tiles = (call.n + most - 1) / most;
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t first = call.n * tile / tiles, next = call.n * (tile + 1) / tiles;
        with_tokens<most_tokens>(static_cast<int>(next - first), product, call, first);
    }
}

}  // namespace

HAVERSACK_TABLE(SparseKernels, sparse) = {multiply};

}  // namespace haversack::HAVERSACK_TARGET
