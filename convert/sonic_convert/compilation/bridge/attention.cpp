#include "attention.h"

#include "function.h"
#include "product.h"
#include "softmax.h"
#include "split.h"
#include "workers.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace sonic::acl {
namespace {

// The scores of a block (512 KB) and the keys and values that belong to it fit into a second-level cache, and
// for so many queries the cost of reshaping these is small.
constexpr int64_t kMostQueries = 256;
constexpr int64_t kMostKeys = 512;
constexpr int64_t kMostScores = 128 * 1024;
constexpr int64_t kMostTogether = 64;  // batch elements whose products ACL computes in one call

struct Block {
    const float *q, *k, *v;
    float *output;
    int64_t count;    // batch elements
    int64_t queries;  // of each
};

/// One block of queries: keys come in blocks too, and what they contributed is scaled down where a later
/// block has a greater score (the "online" softmax).
class BlockAttention {
public:
    BlockAttention(const AttentionShape &shape, float scale, int64_t most_keys)
        : shape_(shape), row_(shape.heads * shape.width), scale_(scale), by_key_(shape.keys, most_keys, 48) {}

    void run(const Block &block) const {
        const int64_t rows = block.count * block.queries;
        const Scratch scratch(rows * by_key_.size * sizeof(float));
        auto *scores = scratch.as<float>();
        std::vector<RowSum> sums(rows, RowSum{-INFINITY, 0.F});
        for (int64_t part = 0; part < by_key_.parts; ++part) {
            const int64_t keys = by_key_.length_of(part);
            const int64_t offset = by_key_.begin(part) * row_;
            multiply_queries(block, block.k + offset, scores, keys);
            for (int64_t row = 0; row < rows; ++row) {
                const float kept = exponentials(scores + row * keys, keys, scale_, sums[row]);
                if (part > 0 && kept != 1.F) multiply(output_row(block, row), shape_.width, kept);
            }
            multiply_values(block, scores, block.v + offset, keys, part > 0);
        }
        for (int64_t row = 0; row < rows; ++row) {
            multiply(output_row(block, row), shape_.width, 1.F / sums[row].sum);
        }
    }

private:
    float *output_row(const Block &block, int64_t row) const {
        const int64_t element = row / block.queries;
        return block.output + (element * shape_.queries + row % block.queries) * row_;
    }

    void multiply_queries(const Block &block, const float *k, float *scores, int64_t keys) const {
        const ProductShape product{block.count,
                                   block.queries,
                                   keys,
                                   shape_.width,
                                   {row_, shape_.queries * row_},
                                   {row_, shape_.keys * row_},
                                   {keys, block.queries * keys},
                                   true,
                                   false};
        const Products::Lease multiply(Products::get(), product);
        multiply->run(block.q, k, scores);
    }

    void multiply_values(const Block &block, const float *scores, const float *v, int64_t keys,
                         bool add) const {
        const ProductShape product{block.count,
                                   block.queries,
                                   shape_.width,
                                   keys,
                                   {keys, block.queries * keys},
                                   {row_, shape_.keys * row_},
                                   {row_, shape_.queries * row_},
                                   false,
                                   add};
        const Products::Lease multiply(Products::get(), product);
        multiply->run(scores, v, block.output);
    }

    AttentionShape shape_;
    int64_t row_;
    float scale_;
    Split by_key_;
};

}  // namespace

void attention(const float *q, const float *k, const float *v, float *output, const AttentionShape &shape,
               float scale) {
    const int64_t row = shape.heads * shape.width;
    const Split by_query(shape.queries, kMostQueries, 24);
    const int64_t scores = by_query.size * std::min(shape.keys, kMostKeys);
    const bool whole = by_query.parts == 1 && shape.keys <= kMostKeys;
    const Split by_element(shape.batch,
                           whole ? std::clamp<int64_t>(kMostScores / scores, 1, kMostTogether) : 1);
    const BlockAttention block_attention(shape, scale, kMostKeys);
    parallel(by_element.parts * shape.heads * by_query.parts, [&](size_t task) {
        const int64_t part = static_cast<int64_t>(task) % by_query.parts;
        const int64_t head = static_cast<int64_t>(task) / by_query.parts % shape.heads;
        const int64_t group = static_cast<int64_t>(task) / by_query.parts / shape.heads;
        const int64_t first = by_element.begin(group);
        const int64_t query = (first * shape.queries + by_query.begin(part)) * row + head * shape.width;
        const int64_t key = first * shape.keys * row + head * shape.width;
        block_attention.run({q + query, k + key, v + key, output + query, by_element.length_of(group),
                             by_query.length_of(part)});
    });
}

}  // namespace sonic::acl
