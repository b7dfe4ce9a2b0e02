// Products of matrices that change from call to call.
#pragma once

#include "cache.h"
#include "function.h"

#include <cstdint>
#include <memory>
#include <tuple>

namespace sonic::acl {

/// Strides, in values: from a row to the next, and from a matrix to the next.
struct Steps {
    int64_t row, matrix;
};

/// count products d = a b, or d = a b^T, of matrices that may be parts of larger ones.
struct ProductShape {
    int64_t count, rows, columns, depth;
    Steps a, b, d;
    bool transpose_b;  // b is columns x depth
    bool accumulate;   // d += a b

    auto tied() const {
        return std::tie(count, rows, columns, depth, a.row, a.matrix, b.row, b.matrix, d.row, d.matrix,
                        transpose_b, accumulate);
    }
    bool operator<(const ProductShape &other) const { return tied() < other.tied(); }
};

/// Those products in the caller's thread.
class Product {
public:
    explicit Product(const ProductShape &shape);

    void run(const float *a, const float *b, float *d);

private:
    std::unique_ptr<Function> function_;
};

using Products = Pool<ProductShape, Product>;

/// output[b] = a[b] b[b] for every b of the batch, shared among the threads.
void batch_matmul(const float *a, const float *b, float *output, int64_t batch, int64_t rows, int64_t depth,
                  int64_t columns, bool transpose_b);

}  // namespace sonic::acl
