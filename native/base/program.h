// A block of a model as a list of kernel calls that is made once and run for every step: between two calls nothing happens
// but the call. Each operation has the bits of the kernel of its name called alone.
#pragma once
#include <memory>
#include <vector>

#include "attend.h"
#include "base/pooled.h"
#include "cache.h"
#include "gates.h"
#include "matmul.h"
#include "shadow.h"

namespace haversack {

// Buffers of a model's programs, f32 [n, width] by number; every block uses them again. Number 0 is what run() is given.
class Workspace {
  public:
    explicit Workspace(std::vector<int64_t> widths);
    Workspace(const Workspace &) = delete;
    Workspace &operator=(const Workspace &) = delete;
    int count() const { return static_cast<int>(widths_.size()); }
    int64_t width(int buffer) const { return widths_[static_cast<size_t>(buffer)]; }
    int append(int64_t width);  // one more buffer; its number
    void reserve(int64_t n);    // room for n rows in each
    float *at(int buffer) const { return buffers_[static_cast<size_t>(buffer)].get(); }

  private:
    struct Free {
        void operator()(float *p) const;
    };
    std::vector<int64_t> widths_;
    std::vector<std::unique_ptr<float, Free>> buffers_;
    int64_t rows_ = 0;
};

// What a step knows.
struct Step {
    float *hidden;  // [n, width of buffer 0]
    int64_t n;
    Cache cache;
    int64_t start;           // entry of the first new token
    const float *cos, *sin;  // [n, pairs], or nullptr
    int64_t pairs;
    int64_t length, fresh;  // see Attention
    const int64_t *first;
    const uint8_t *mask;
    const Runs *runs;  // of rows in several caches instead of `cache`; start, length, fresh and mask are not used then
};

struct Operation {
    enum Kind { rms_norm, layer_norm, products, rope_write, attention, gate, add, copy, outliers, gather, shadow };
    struct Matrix {
        Weights weights;
        int out;
        const float *bias;  // [rows], or nullptr
        bool add;           // to what `out` holds
    };
    Kind kind;
    int x = 0, y = 0, z = 0, out = 0;            // buffers
    const float *one = nullptr, *two = nullptr;  // weight and bias of a norm; norms of the heads of queries and keys
    const int32_t *places = nullptr;             // where rows of outliers start; gathered inputs
    const uint16_t *columns = nullptr;           // of outliers, whose values are `one`
    float eps = 0, offset = 0;
    std::vector<Matrix> matrices;
    Activations how = Activations::f32;
    Fixed fixed = {};
    Activation activation = Activation::silu;
    Shadow missed = {};  // of `y`, which the product of `x` is in; its bias is `one`
    bool adds = false;   // to what `out` holds
    bool interleaved = false;
    int64_t heads = 0;
    float scale = 0, softcap = 0;
};

class Program {
  public:
    explicit Program(std::shared_ptr<Workspace> space) : space_(std::move(space)) {}
    void append(Operation operation) { operations_.push_back(std::move(operation)); }
    const Workspace &space() const { return *space_; }
    const std::vector<Operation> &operations() const { return operations_; }
    void run(const Step &step) const;

  private:
    std::shared_ptr<Workspace> space_;
    std::vector<Operation> operations_;
};

}  // namespace haversack
