// Softmax of whole rows, and of rows that arrive in pieces.
#pragma once

#include <cstdint>

namespace sonic::acl {

/// The state of one row's softmax so far: the sum of exp(scale * (score - greatest)).
struct RowSum {
    float greatest;
    float sum;
};

/// Replaces scores by exp(scale * (score - greatest)) with the greatest score of the row so far, adds them to
/// the row's sum, and returns the factor for earlier parts of the row. scale is positive.
float exponentials(float *scores, int64_t count, float scale, RowSum &row);

/// values *= factor.
void multiply(float *values, int64_t count, float factor);

/// The softmax of every row, shared among the threads; output may be input.
void softmax(const float *input, float *output, int64_t rows, int64_t columns);

}  // namespace sonic::acl
