// Matrix products: out[n, rows] = x[n, columns] times the weights, transposed; the layouts are those of kernels/_matrix.py.
#pragma once
#include <cstdint>

#include "base/isa.h"

namespace haversack {

// int8 has one f32 scale a row, int8_grouped one f16 scale a row and group of int8_columns, int4 and int3 one a row and group.
enum class Kind : int32_t { f32, f16, bf16, int8, int4, int3, int8_grouped };
enum class Activations : int32_t { f32, int8_dynamic, int8_static };

// int8: columns are padded to this many, and activations get one scale for each so many.
constexpr int64_t int8_columns = 32;

struct Weights {
    const uint8_t *data;  // any alignment
    int64_t rows, columns;
    int64_t
        group;  // columns that share a scale of the activations: int4 and int3 their group, both int8 int8_columns, floats 0
    Kind kind;
    bool interleaved = false;  // f32 in layout rows16-1: 16 rows by 1 column, rows padded to a multiple of 16

    bool packed() const { return kind >= Kind::int8; }
    int64_t groups() const { return (columns + group - 1) / group; }
    // Work is dealt out in blocks of 16 rows, the last one perhaps shorter.
    int64_t blocks() const { return (rows + 15) / 16; }
    int64_t block_bytes() const {
        if (kind == Kind::int4) return groups() * (group * 8 + 32);
        if (kind == Kind::int3) return groups() * (group * 6 + 32);
        if (kind == Kind::int8) return groups() * group * 16 + 64;
        if (kind == Kind::int8_grouped) return groups() * (group * 16 + 32);
        return 16 * columns * (kind == Kind::f32 ? 4 : 2);
    }
    int64_t bytes() const {
        return packed() || interleaved ? blocks() * block_bytes() : rows * columns * (kind == Kind::f32 ? 4 : 2);
    }
};

struct Product {
    Weights weights;
    float *out;                   // [n, rows]
    const float *add;             // [n, rows] or nullptr; may be out
    const float *bias = nullptr;  // [rows] or nullptr; added last
};

struct MatmulKernels {
    // All products share their inputs x[n, columns]. Float kinds take Activations::f32 only.
    void (*products)(const float *x, int64_t n, const Product *products, int count, Activations activations,
                     float static_scale);
};

}  // namespace haversack

HAVERSACK_FAMILY(haversack::MatmulKernels, matmul)
