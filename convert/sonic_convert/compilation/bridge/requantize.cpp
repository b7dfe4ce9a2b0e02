#include "requantize.h"

#include <arm_neon.h>

#include <algorithm>
#include <cmath>

namespace sonic::acl {
namespace {

inline float32x4_t real(const int32_t *sums, const float *scales, const int32_t *offsets) {
    return vmulq_f32(vcvtq_f32_s32(vaddq_s32(vld1q_s32(sums), vld1q_s32(offsets))), vld1q_f32(scales));
}

inline float real(int32_t sum, float scale, int32_t offset) {
    return static_cast<float>(sum + offset) * scale;
}

inline int8_t rounded(float value, int32_t zero) {
    return static_cast<int8_t>(std::clamp(std::nearbyint(value) + static_cast<float>(zero), -128.F, 127.F));
}

/// Eight integers within 16 bits; zero is added there, so that nothing overflows.
inline int16x8_t rounded(float32x4_t low, float32x4_t high, int16x8_t zero) {
    return vqaddq_s16(vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(low)), vqmovn_s32(vcvtnq_s32_f32(high))), zero);
}

}  // namespace

void to_float(const int32_t *sums, float *values, int64_t rows, int64_t columns, const float *scales,
              const int32_t *offsets) {
    for (int64_t row = 0; row < rows; ++row, sums += columns, values += columns) {
        int64_t i = 0;
        for (; i + 4 <= columns; i += 4) vst1q_f32(values + i, real(sums + i, scales + i, offsets + i));
        for (; i < columns; ++i) values[i] = real(sums[i], scales[i], offsets[i]);
    }
}

void to_int8(const int32_t *sums, int8_t *values, int64_t rows, int64_t columns, const float *scales,
             const int32_t *offsets, int32_t zero) {
    const int16x8_t zeros = vdupq_n_s16(static_cast<int16_t>(zero));
    for (int64_t row = 0; row < rows; ++row, sums += columns, values += columns) {
        int64_t i = 0;
        for (; i + 8 <= columns; i += 8) {
            const auto low = real(sums + i, scales + i, offsets + i);
            const auto high = real(sums + i + 4, scales + i + 4, offsets + i + 4);
            vst1_s8(values + i, vqmovn_s16(rounded(low, high, zeros)));
        }
        for (; i < columns; ++i) values[i] = rounded(real(sums[i], scales[i], offsets[i]), zero);
    }
}

void to_int8(const float *input, int8_t *values, int64_t count, float scale, int32_t zero) {
    const int16x8_t zeros = vdupq_n_s16(static_cast<int16_t>(zero));
    const float32x4_t divisor = vdupq_n_f32(scale);
    const auto eight = [&](const float *from) {
        return vqmovn_s16(
            rounded(vdivq_f32(vld1q_f32(from), divisor), vdivq_f32(vld1q_f32(from + 4), divisor), zeros));
    };
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) vst1_s8(values + i, eight(input + i));
    for (; i < count; ++i) values[i] = rounded(input[i] / scale, zero);
}

}  // namespace sonic::acl
