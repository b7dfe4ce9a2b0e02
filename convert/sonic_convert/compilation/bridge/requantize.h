// From sums of products of 8-bit integers to values.
#pragma once

#include <cstdint>

namespace sonic::acl {

/// rows x columns sums to real values, in place or not: scale[column] * (sum + offset[column]).
void to_float(const int32_t *sums, float *values, int64_t rows, int64_t columns, const float *scales,
              const int32_t *offsets);

/// The same, rounded to the nearest integer (ties to even), plus zero, within int8.
void to_int8(const int32_t *sums, int8_t *values, int64_t rows, int64_t columns, const float *scales,
             const int32_t *offsets, int32_t zero);

/// round(input / scale) + zero within int8.
void to_int8(const float *input, int8_t *values, int64_t count, float scale, int32_t zero);

}  // namespace sonic::acl
