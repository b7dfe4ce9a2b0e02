// Attention without the matrix of all scores.
#pragma once

#include <cstdint>

namespace sonic::acl {

struct AttentionShape {
    int64_t batch, queries, keys, heads, width;  // width of a head
};

/// output = softmax(scale * q k^T) v for every head, in blocks of queries and keys; shared among the threads.
/// q and output are batch x queries x heads x width, k and v batch x keys x heads x width.
void attention(const float *q, const float *k, const float *v, float *output, const AttentionShape &shape,
               float scale);

}  // namespace sonic::acl
