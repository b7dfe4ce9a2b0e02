// Convolutions and dense layers of 8-bit integers.
#pragma once

#include "convolution.h"

#include <cstdint>
#include <string>

namespace sonic::acl {

/// What the integers mean: real = scale * (integer - zero).
struct Scale {
    float scale;
    int32_t zero;
};

/// The constants of a quantized layer: weights with one scale for every output, biases in input scale times
/// weight scale.
struct QuantizedWeights {
    const int8_t *values;
    const float *scales;
    const int32_t *bias;
};

/// Output is rounded to int8 as ONNX does (to the nearest, ties to even).
void quantized_convolution(const int8_t *input, const QuantizedWeights &weights, int8_t *output,
                           const ConvolutionShape &shape, Scale input_scale, Scale output_scale,
                           const std::string &key);
/// Output is the real value.
void quantized_convolution(const int8_t *input, const QuantizedWeights &weights, float *output,
                           const ConvolutionShape &shape, Scale input_scale, const std::string &key);

/// The same for rows x depth times depth x columns.
void quantized_linear(const int8_t *input, const QuantizedWeights &weights, int8_t *output, int64_t rows,
                      int64_t depth, int64_t columns, Scale input_scale, Scale output_scale,
                      const std::string &key);
void quantized_linear(const int8_t *input, const QuantizedWeights &weights, float *output, int64_t rows,
                      int64_t depth, int64_t columns, Scale input_scale, const std::string &key);

/// output = round(input / scale) + zero, within int8.
void quantize(const float *input, int8_t *output, int64_t count, Scale scale);

}  // namespace sonic::acl
