// What TVM's programs call: registers the functions, checks their arguments.
#include "attention.h"
#include "cache.h"
#include "convolution.h"
#include "errors.h"
#include "function.h"
#include "product.h"
#include "quantized.h"
#include "softmax.h"
#include "workers.h"

#include <arm_compute/core/Version.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/ffi/string.h>

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

namespace sonic::acl {
namespace {

using tvm::ffi::Array;
using tvm::ffi::String;
using tvm::ffi::TensorView;

constexpr int64_t kMostThreads = 1024;

std::string text(tvm::ffi::ShapeView shape) {
    std::string text = "(";
    for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + ")";
}

struct Kind {
    uint8_t code;
    uint8_t bits;
    const char *name;
};

template <class Value>
constexpr Kind kKind = {};
template <>
constexpr Kind kKind<float> = {kDLFloat, 32, "float32"};
template <>
constexpr Kind kKind<int8_t> = {kDLInt, 8, "int8"};
template <>
constexpr Kind kKind<int32_t> = {kDLInt, 32, "int32"};

/// The values of a tensor that must be dense, in memory and of those sizes (-1: any, but 0).
template <class Value>
Value *values(const TensorView &tensor, const char *name, const std::vector<int64_t> &sizes) {
    const auto &kind = kKind<Value>;
    const DLDataType type = tensor.dtype();
    if (type.code != kind.code || type.bits != kind.bits || type.lanes != 1) {
        refuse(name, " must be a tensor of ", kind.name);
    }
    if (tensor.device().device_type != kDLCPU) refuse(name, " must be in the processor's memory");
    bool fits = tensor.ndim() == static_cast<int32_t>(sizes.size());
    for (size_t i = 0; fits && i < sizes.size(); ++i) {
        const int64_t wanted = sizes[i];
        fits = tensor.size(i) > 0 && (wanted < 0 || tensor.size(i) == wanted);
    }
    if (!fits) {
        std::string expected;
        for (const int64_t size : sizes) {
            expected += (expected.empty() ? "" : ", ") + (size < 0 ? "any" : std::to_string(size));
        }
        refuse(name, " has the shape ", text(tensor.shape()), " instead of (", expected, ")");
    }
    if (!tensor.IsContiguous()) refuse(name, " must be contiguous");
    return reinterpret_cast<Value *>(static_cast<char *>(tensor.data_ptr()) + tensor.byte_offset());
}

int64_t size_of(const TensorView &tensor, int32_t dimension, const char *name) {
    if (dimension >= tensor.ndim()) refuse(name, " has too few dimensions: ", text(tensor.shape()));
    return tensor.size(dimension);
}

void check_least(std::initializer_list<std::pair<const char *, int64_t>> numbers, int64_t least) {
    for (const auto &[name, number] : numbers) {
        if (number < least) refuse(name, " must be at least ", least, ", not ", number);
    }
}

ConvolutionShape convolution_shape(const TensorView &input, const TensorView &weight, int64_t stride_height,
                                   int64_t stride_width, int64_t pad_top, int64_t pad_left,
                                   int64_t pad_bottom, int64_t pad_right) {
    const ConvolutionShape shape{size_of(input, 0, "the input"),
                                 size_of(input, 1, "the input"),
                                 size_of(input, 2, "the input"),
                                 size_of(input, 3, "the input"),
                                 size_of(weight, 0, "the weight"),
                                 size_of(weight, 1, "the weight"),
                                 size_of(weight, 2, "the weight"),
                                 stride_height,
                                 stride_width,
                                 pad_top,
                                 pad_left,
                                 pad_bottom,
                                 pad_right};
    check_least({{"stride_h", stride_height}, {"stride_w", stride_width}}, 1);
    check_least(
        {{"pad_top", pad_top}, {"pad_left", pad_left}, {"pad_bottom", pad_bottom}, {"pad_right", pad_right}},
        0);
    if (shape.height + pad_top + pad_bottom < shape.kernel_height ||
        shape.width + pad_left + pad_right < shape.kernel_width) {
        refuse("the kernel ", text(weight.shape()), " is larger than the padded input ", text(input.shape()));
    }
    return shape;
}

template <Method method>
void convolution2d(TensorView input, TensorView weight, TensorView bias, String key, int64_t stride_h,
                   int64_t stride_w, int64_t pad_top, int64_t pad_left, int64_t pad_bottom, int64_t pad_right,
                   TensorView output) {
    const auto s =
        convolution_shape(input, weight, stride_h, stride_w, pad_top, pad_left, pad_bottom, pad_right);
    convolution(
        values<float>(input, "the input", {-1, -1, -1, -1}),
        values<float>(weight, "the weight", {-1, -1, -1, s.channels}),
        values<float>(bias, "the bias", {s.outputs}),
        values<float>(output, "the output", {s.batch, s.output_height(), s.output_width(), s.outputs}), s,
        method, key);
}

void linear_layer(TensorView input, TensorView weight, TensorView bias, String key, TensorView output) {
    const int64_t rows = size_of(input, 0, "the input");
    const int64_t depth = size_of(input, 1, "the input");
    const int64_t columns = size_of(weight, 1, "the weight");
    linear(values<float>(input, "the input", {-1, -1}), values<float>(weight, "the weight", {depth, -1}),
           values<float>(bias, "the bias", {columns}), values<float>(output, "the output", {rows, columns}),
           rows, depth, columns, false, key);
}

void batch_product(TensorView a, TensorView b, int64_t transpose_b, TensorView output) {
    const int64_t batch = size_of(a, 0, "a");
    const int64_t rows = size_of(a, 1, "a");
    const int64_t depth = size_of(a, 2, "a");
    const int64_t columns = size_of(b, transpose_b ? 1 : 2, "b");
    batch_matmul(
        values<float>(a, "a", {-1, -1, -1}),
        transpose_b ? values<float>(b, "b", {batch, -1, depth}) : values<float>(b, "b", {batch, depth, -1}),
        values<float>(output, "the output", {batch, rows, columns}), batch, rows, depth, columns,
        transpose_b != 0);
}

void attention_layer(TensorView q, TensorView k, TensorView v, int64_t heads, double scale,
                     TensorView output) {
    const int64_t batch = size_of(q, 0, "q");
    const int64_t queries = size_of(q, 1, "q");
    const int64_t row = size_of(q, 2, "q");
    const int64_t keys = size_of(k, 1, "k");
    if (heads < 1 || row % heads) refuse("q's rows of ", row, " values do not divide into ", heads, " heads");
    if (!(scale > 0)) refuse("the scale must be positive, not ", scale);
    attention(values<float>(q, "q", {-1, -1, -1}), values<float>(k, "k", {batch, -1, row}),
              values<float>(v, "v", {batch, keys, row}),
              values<float>(output, "the output", {batch, queries, row}),
              {batch, queries, keys, heads, row / heads}, static_cast<float>(scale));
}

void softmax_rows(TensorView input, TensorView output) {
    const int64_t rows = size_of(input, 0, "the input");
    const int64_t columns = size_of(input, 1, "the input");
    softmax(values<float>(input, "the input", {-1, -1}), values<float>(output, "the output", {rows, columns}),
            rows, columns);
}

Scale quantization(double scale, int64_t zero, const char *name) {
    if (!(scale > 0)) refuse("the ", name, " scale must be positive, not ", scale);
    if (zero < -128 || zero > 127) refuse("the ", name, " zero point must be from -128 to 127, not ", zero);
    return {static_cast<float>(scale), static_cast<int32_t>(zero)};
}

QuantizedWeights quantized_weights(const int8_t *weight, const TensorView &scales, const TensorView &bias,
                                   int64_t outputs) {
    return {weight, values<float>(scales, "the weight's scales", {outputs}),
            values<int32_t>(bias, "the bias", {outputs})};
}

void quantized_convolution2d(TensorView input, TensorView weight, TensorView weight_scales, TensorView bias,
                             String key, double input_scale, int64_t input_zero, double output_scale,
                             int64_t output_zero, int64_t stride_h, int64_t stride_w, int64_t pad_top,
                             int64_t pad_left, int64_t pad_bottom, int64_t pad_right, TensorView output) {
    const auto s =
        convolution_shape(input, weight, stride_h, stride_w, pad_top, pad_left, pad_bottom, pad_right);
    const auto *weights = values<int8_t>(weight, "the weight", {-1, -1, -1, s.channels});
    quantized_convolution(
        values<int8_t>(input, "the input", {-1, -1, -1, -1}),
        quantized_weights(weights, weight_scales, bias, s.outputs),
        values<int8_t>(output, "the output", {s.batch, s.output_height(), s.output_width(), s.outputs}), s,
        quantization(input_scale, input_zero, "input"), quantization(output_scale, output_zero, "output"),
        key);
}

void quantized_convolution2d_float(TensorView input, TensorView weight, TensorView weight_scales,
                                   TensorView bias, String key, double input_scale, int64_t input_zero,
                                   int64_t stride_h, int64_t stride_w, int64_t pad_top, int64_t pad_left,
                                   int64_t pad_bottom, int64_t pad_right, TensorView output) {
    const auto s =
        convolution_shape(input, weight, stride_h, stride_w, pad_top, pad_left, pad_bottom, pad_right);
    const auto *weights = values<int8_t>(weight, "the weight", {-1, -1, -1, s.channels});
    quantized_convolution(
        values<int8_t>(input, "the input", {-1, -1, -1, -1}),
        quantized_weights(weights, weight_scales, bias, s.outputs),
        values<float>(output, "the output", {s.batch, s.output_height(), s.output_width(), s.outputs}), s,
        quantization(input_scale, input_zero, "input"), key);
}

void quantized_linear_layer(TensorView input, TensorView weight, TensorView weight_scales, TensorView bias,
                            String key, double input_scale, int64_t input_zero, double output_scale,
                            int64_t output_zero, TensorView output) {
    const int64_t rows = size_of(input, 0, "the input");
    const int64_t depth = size_of(input, 1, "the input");
    const int64_t columns = size_of(weight, 1, "the weight");
    quantized_linear(
        values<int8_t>(input, "the input", {-1, -1}),
        quantized_weights(values<int8_t>(weight, "the weight", {depth, -1}), weight_scales, bias, columns),
        values<int8_t>(output, "the output", {rows, columns}), rows, depth, columns,
        quantization(input_scale, input_zero, "input"), quantization(output_scale, output_zero, "output"),
        key);
}

void quantized_linear_layer_float(TensorView input, TensorView weight, TensorView weight_scales,
                                  TensorView bias, String key, double input_scale, int64_t input_zero,
                                  TensorView output) {
    const int64_t rows = size_of(input, 0, "the input");
    const int64_t depth = size_of(input, 1, "the input");
    const int64_t columns = size_of(weight, 1, "the weight");
    quantized_linear(
        values<int8_t>(input, "the input", {-1, -1}),
        quantized_weights(values<int8_t>(weight, "the weight", {depth, -1}), weight_scales, bias, columns),
        values<float>(output, "the output", {rows, columns}), rows, depth, columns,
        quantization(input_scale, input_zero, "input"), key);
}

void quantize_tensor(TensorView input, double scale, int64_t zero, TensorView output) {
    const auto shape = input.shape();
    const std::vector<int64_t> sizes(shape.begin(), shape.end());
    quantize(values<float>(input, "the input", sizes), values<int8_t>(output, "the output", sizes),
             input.numel(), quantization(scale, zero, "output"));
}

void use_threads(int64_t count) {
    if (count < 0 || count > kMostThreads) {
        refuse("the number of threads must be from 0 (one for every processor) to ", kMostThreads, ", not ",
               count);
    }
    set_threads(static_cast<unsigned>(count));
}

void forget(Array<String> keys) {
    for (const String &key : keys) Cache::get().forget(key);
}

void clear() {
    Cache::get().clear();
    Products::get().clear();
    Scratch::clear();
}

TVM_FFI_STATIC_INIT_BLOCK() {
    // Every bundle contains a copy of this library: the first one loaded serves all.
    if (tvm::ffi::Function::GetGlobal("sonic.acl.version").has_value()) return;
    install_scheduler();
    tvm::ffi::reflection::GlobalDef()
        .def("sonic.acl.convolution2d", convolution2d<Method::kAuto>)
        .def("sonic.acl.gemm_convolution2d", convolution2d<Method::kGemm>)
        .def("sonic.acl.winograd_convolution2d", convolution2d<Method::kWinograd>)
        .def("sonic.acl.linear", linear_layer)
        .def("sonic.acl.batch_matmul", batch_product)
        .def("sonic.acl.attention", attention_layer)
        .def("sonic.acl.softmax", softmax_rows)
        .def("sonic.acl.quantized_convolution2d", quantized_convolution2d)
        .def("sonic.acl.quantized_convolution2d_float", quantized_convolution2d_float)
        .def("sonic.acl.quantized_linear", quantized_linear_layer)
        .def("sonic.acl.quantized_linear_float", quantized_linear_layer_float)
        .def("sonic.acl.quantize", quantize_tensor)
        .def("sonic.acl.set_threads", use_threads)
        .def("sonic.acl.forget", forget)
        .def("sonic.acl.clear", clear)
        .def("sonic.acl.version", [] { return String(arm_compute::build_information()); });
}

}  // namespace
}  // namespace sonic::acl
