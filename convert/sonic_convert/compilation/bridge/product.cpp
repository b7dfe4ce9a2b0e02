#include "product.h"

#include "errors.h"
#include "split.h"
#include "workers.h"

#include <arm_compute/function_info/GEMMInfo.h>
#include <arm_compute/runtime/experimental/low_level/CpuGemmAssemblyDispatch.h>

#include <algorithm>
#include <limits>

namespace sonic::acl {
namespace {

using arm_compute::DataType;
using arm_compute::Strides;
using arm_compute::TensorInfo;
using arm_compute::TensorShape;
using Gemm = arm_compute::experimental::op::ll::CpuGemmAssemblyDispatch;

constexpr int64_t kMostRows = 256;
constexpr int64_t kMostColumns = 512;
constexpr int64_t kLeastOperations = 2'000'000;  // of a task, so that the overhead of a call is small
constexpr int64_t kMostStep = std::numeric_limits<uint32_t>::max() / sizeof(float);  // ACL's have 32 bits

TensorInfo strided(const TensorShape &shape, std::initializer_list<int64_t> steps) {
    Strides strides(sizeof(float));
    size_t bytes = shape[0] * sizeof(float);
    size_t dimension = 1;
    for (const int64_t step : steps) {
        if (step > kMostStep) refuse("a matrix of more than 4 GB is too large");
        strides.set(dimension, static_cast<uint32_t>(step * sizeof(float)));
        bytes += (shape[dimension] - 1) * strides[dimension];
        ++dimension;
    }
    TensorInfo info;
    info.init(shape, 1, DataType::F32, strides, 0, bytes);
    info.set_are_values_constant(false);
    return info;
}

}  // namespace

Product::Product(const ProductShape &s) {
    const size_t rows = s.rows, columns = s.columns, depth = s.depth, count = s.count;
    // ACL's third dimension of a and d is for products that share their b.
    const auto a = strided({depth, rows, 1, count}, {s.a.row, s.a.matrix, s.a.matrix});
    const auto b = s.transpose_b ? strided({depth, columns, count}, {s.b.row, s.b.matrix})
                                 : strided({columns, depth, count}, {s.b.row, s.b.matrix});
    auto d = strided({columns, rows, 1, count}, {s.d.row, s.d.matrix, s.d.matrix});
    arm_compute::GEMMInfo how;
    how.set_pretranspose_B(s.transpose_b);
    how.set_accumulate(s.accumulate);
    const Parts one(1);
    require(Gemm::validate(&a, &b, nullptr, &d, how), "a product of matrices");
    auto gemm = std::make_shared<Gemm>();
    gemm->configure(&a, &b, nullptr, &d, how);
    function_ = std::make_unique<Function>(
        gemm, 1,
        std::vector<Operand>{
            {arm_compute::ACL_SRC_0, a}, {arm_compute::ACL_SRC_1, b}, {arm_compute::ACL_DST, d}});
}

void Product::run(const float *a, const float *b, float *d) {
    function_->run({{arm_compute::ACL_SRC_0, a}, {arm_compute::ACL_SRC_1, b}, {arm_compute::ACL_DST, d}});
}

void batch_matmul(const float *a, const float *b, float *output, int64_t batch, int64_t rows, int64_t depth,
                  int64_t columns, bool transpose_b) {
    const Split by_row(rows, kMostRows, 24);
    const Split by_column(columns, kMostColumns, 48);
    const int64_t group = std::max<int64_t>(1, kLeastOperations / (by_row.size * by_column.size * depth));
    const Split by_product(batch, group);
    const int64_t row_b = transpose_b ? depth : columns;
    parallel(by_product.parts * by_row.parts * by_column.parts, [&](size_t task) {
        const int64_t column = static_cast<int64_t>(task) % by_column.parts;
        const int64_t row = static_cast<int64_t>(task) / by_column.parts % by_row.parts;
        const int64_t product = static_cast<int64_t>(task) / by_column.parts / by_row.parts;
        const int64_t first = by_product.begin(product);
        const ProductShape shape{by_product.length_of(product),
                                 by_row.length_of(row),
                                 by_column.length_of(column),
                                 depth,
                                 {depth, rows * depth},
                                 {row_b, depth * columns},
                                 {columns, rows * columns},
                                 transpose_b,
                                 false};
        const Products::Lease multiply(Products::get(), shape);
        multiply->run(a + (first * rows + by_row.begin(row)) * depth,
                      b + first * depth * columns + by_column.begin(column) * (transpose_b ? depth : 1),
                      output + (first * rows + by_row.begin(row)) * columns + by_column.begin(column));
    });
}

}  // namespace sonic::acl
