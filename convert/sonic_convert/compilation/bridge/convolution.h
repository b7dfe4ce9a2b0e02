// Convolutions and dense layers with constant weights.
#pragma once

#include <cstdint>
#include <string>

namespace sonic::acl {

struct ConvolutionShape {
    int64_t batch, height, width, channels;
    int64_t outputs, kernel_height, kernel_width;
    int64_t stride_height, stride_width;
    int64_t pad_top, pad_left, pad_bottom, pad_right;

    int64_t output_height() const {
        return (height + pad_top + pad_bottom - kernel_height) / stride_height + 1;
    }
    int64_t output_width() const { return (width + pad_left + pad_right - kernel_width) / stride_width + 1; }
    /// A dense layer of every pixel.
    bool pointwise() const {
        return kernel_height == 1 && kernel_width == 1 && stride_height == 1 && stride_width == 1 &&
               pad_top == 0 && pad_left == 0 && pad_bottom == 0 && pad_right == 0;
    }
    double operations() const {
        return static_cast<double>(batch) * output_height() * output_width() * outputs * kernel_height *
               kernel_width * channels;
    }
    std::string text() const;
};

/// How a convolution is computed.
enum class Method {
    kAuto,  // kWinograd where that pays and its error is below 2e-6 of the result, else kGemm
    kGemm,  // as a product of matrices
    // For kernels of 3 x 3, 3 x 1, 1 x 3 and 5 x 5 with stride 1: up to 4 times fewer operations, but up to 4
    // times the memory for weights.
    kWinograd,
};

void convolution(const float *input, const float *weight, const float *bias, float *output,
                 const ConvolutionShape &shape, Method method, const std::string &key);

/// output = input weight + bias, with a weight of depth x columns, or columns x depth if transposed.
void linear(const float *input, const float *weight, const float *bias, float *output, int64_t rows,
            int64_t depth, int64_t columns, bool transposed, const std::string &key);

}  // namespace sonic::acl
