#include "softmax.h"

#include "split.h"
#include "workers.h"

#include <arm_neon.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace sonic::acl {
namespace {

constexpr float kLog2E = 1.44269504F;
constexpr float kLeastExponent =
    -126.F;  // below, a float would lose digits: exp is practically zero there

/// 2^x for x <= 0: the integer part goes into the exponent, a polynomial does the rest (relative error 1e-7).
inline float32x4_t power_of_two(float32x4_t x) {
    x = vmaxq_f32(x, vdupq_n_f32(kLeastExponent));
    const float32x4_t whole = vrndnq_f32(x);
    const float32x4_t rest = vsubq_f32(x, whole);
    const float32x4_t square = vmulq_f32(rest, rest);
    const float32x4_t high = vfmaq_f32(vdupq_n_f32(0.00967554133F), vdupq_n_f32(0.00132764718F), rest);
    const float32x4_t middle = vfmaq_f32(vdupq_n_f32(0.240221197F), vdupq_n_f32(0.0555071327F), rest);
    const float32x4_t low = vfmaq_f32(vdupq_n_f32(1.00000007F), vdupq_n_f32(0.693146967F), rest);
    const float32x4_t y = vfmaq_f32(low, vfmaq_f32(middle, high, square), square);
    const int32x4_t exponent = vshlq_n_s32(vcvtq_s32_f32(whole), 23);
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(y), exponent));
}

/// The last one to three values, padded so that the padding affects neither the greatest nor the sum.
inline float32x4_t load_some(const float *values, int64_t count) {
    float some[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    std::memcpy(some, values, count * sizeof(float));
    return vld1q_f32(some);
}

inline void store_some(float *values, int64_t count, float32x4_t from) {
    float some[4];
    vst1q_f32(some, from);
    std::memcpy(values, some, count * sizeof(float));
}

float greatest_of(const float *values, int64_t count) {
    float32x4_t most = vdupq_n_f32(-INFINITY);
    float32x4_t other = most;
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        most = vmaxq_f32(most, vld1q_f32(values + i));
        other = vmaxq_f32(other, vld1q_f32(values + i + 4));
    }
    if (i + 4 <= count) {
        most = vmaxq_f32(most, vld1q_f32(values + i));
        i += 4;
    }
    if (i < count) other = vmaxq_f32(other, load_some(values + i, count - i));
    return vmaxvq_f32(vmaxq_f32(most, other));
}

/// Writes 2^(factor * (value - greatest)) and returns the sum.
float powers(const float *values, float *results, int64_t count, float factor, float greatest) {
    const float32x4_t times = vdupq_n_f32(factor);
    const float32x4_t most = vdupq_n_f32(greatest);
    const auto power = [&](float32x4_t value) {
        return power_of_two(vmulq_f32(vsubq_f32(value, most), times));
    };
    float32x4_t sum = vdupq_n_f32(0.F);
    float32x4_t other = sum;
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const float32x4_t first = power(vld1q_f32(values + i));
        const float32x4_t second = power(vld1q_f32(values + i + 4));
        vst1q_f32(results + i, first);
        vst1q_f32(results + i + 4, second);
        sum = vaddq_f32(sum, first);
        other = vaddq_f32(other, second);
    }
    if (i + 4 <= count) {
        const float32x4_t result = power(vld1q_f32(values + i));
        vst1q_f32(results + i, result);
        sum = vaddq_f32(sum, result);
        i += 4;
    }
    if (i < count) {
        const float32x4_t result = power(load_some(values + i, count - i));
        store_some(results + i, count - i, result);
        other = vaddq_f32(other, result);
    }
    return vaddvq_f32(vaddq_f32(sum, other));
}

}  // namespace

float exponentials(float *scores, int64_t count, float scale, RowSum &row) {
    const float before = row.greatest;
    row.greatest = std::max(before, greatest_of(scores, count));
    const float kept = before == row.greatest ? 1.F : std::exp(scale * (before - row.greatest));
    row.sum = row.sum * kept + powers(scores, scores, count, scale * kLog2E, row.greatest);
    return kept;
}

void multiply(float *values, int64_t count, float factor) {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) vst1q_f32(values + i, vmulq_n_f32(vld1q_f32(values + i), factor));
    for (; i < count; ++i) values[i] *= factor;
}

void softmax(const float *input, float *output, int64_t rows, int64_t columns) {
    const Split by_row(rows, std::max<int64_t>(1, 65536 / columns));
    parallel(by_row.parts, [&](size_t part) {
        const int64_t first = by_row.begin(part);
        for (int64_t row = first; row < first + by_row.length_of(part); ++row) {
            const float *values = input + row * columns;
            float *results = output + row * columns;
            const float sum = powers(values, results, columns, kLog2E, greatest_of(values, columns));
            multiply(results, columns, 1.F / sum);
        }
    });
}

}  // namespace sonic::acl
