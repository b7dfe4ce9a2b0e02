#include "quantized.h"

#include "cache.h"
#include "errors.h"
#include "function.h"
#include "requantize.h"
#include "split.h"
#include "tiles.h"
#include "workers.h"

#include <arm_compute/core/Types.h>
#include <arm_compute/function_info/GEMMInfo.h>
#include <arm_compute/runtime/FunctionDescriptors.h>
#include <arm_compute/runtime/experimental/low_level/CpuGemmAssemblyDispatch.h>
#include <arm_compute/runtime/experimental/operators/CpuGemmDirectConv2d.h>

#include <algorithm>
#include <sstream>
#include <vector>

namespace sonic::acl {
namespace {

namespace op = arm_compute::experimental::op;
using arm_compute::ACL_DST;
using arm_compute::ACL_SRC_0;
using arm_compute::ACL_SRC_1;
using arm_compute::DataType;
using arm_compute::QuantizationInfo;
using arm_compute::TensorInfo;
using arm_compute::TensorShape;

constexpr double kCopyOfRow = 1536;  // the most that ACL copies of a row of a product at once, in bytes
constexpr double kMostBytes = 32e6;  // that a part of a dense layer takes besides its input and output
constexpr int64_t kMostInTask = 65536;

/// ACL multiplies and sums up integers, and the bridge turns the sums into values: as exactly as ONNX defines
/// it, and with as few instructions as ACL's own requantization, which rounds in fixed point. The input's zero
/// point then adds a constant to every output, which is part of its bias.
struct QuantizedFunction {
    std::shared_ptr<Function> function;
    std::vector<float> scales;
    std::vector<int32_t> offsets;
};

TensorInfo int8_info(const TensorShape &shape, int32_t zero) {
    TensorInfo info(shape, 1, DataType::QASYMM8_SIGNED, QuantizationInfo(1.F, zero));
    info.set_data_layout(arm_compute::DataLayout::NHWC);
    return info;
}

TensorInfo sums_info(const TensorShape &shape) {
    TensorInfo info(shape, 1, DataType::S32, QuantizationInfo(1.F, 0));
    info.set_data_layout(arm_compute::DataLayout::NHWC);
    return info;
}

std::shared_ptr<Function> make_convolution(const ConvolutionShape &s, int32_t zero) {
    const auto input = int8_info(TensorShape(s.channels, s.width, s.height, s.batch), zero);
    const auto weight = int8_info(TensorShape(s.channels, s.kernel_width, s.kernel_height, s.outputs), 0);
    auto sums = sums_info(TensorShape(s.outputs, s.output_width(), s.output_height(), s.batch));
    const arm_compute::PadStrideInfo pads(s.stride_width, s.stride_height, s.pad_left, s.pad_right, s.pad_top,
                                          s.pad_bottom, arm_compute::DimensionRoundingType::FLOOR);
    const arm_compute::Conv2dInfo how(pads, {1, 1}, {}, false, 1);
    require(op::CpuGemmDirectConv2d::validate(&input, &weight, nullptr, &sums, how),
            "a quantized convolution");
    const unsigned parts = Parts::of(s.operations() / 4);
    const Parts scope(parts);
    auto convolution = std::make_shared<op::CpuGemmDirectConv2d>();
    convolution->configure(&input, &weight, nullptr, &sums, how);
    return std::make_shared<Function>(
        convolution, parts, std::vector<Operand>{{ACL_SRC_0, input}, {ACL_SRC_1, weight}, {ACL_DST, sums}});
}

std::shared_ptr<Function> make_linear(int64_t rows, int64_t depth, int64_t columns, bool transposed) {
    const auto input = int8_info(TensorShape(depth, rows), 0);
    const auto weight = int8_info(transposed ? TensorShape(depth, columns) : TensorShape(columns, depth), 0);
    auto sums = sums_info(TensorShape(columns, rows));
    arm_compute::GEMMInfo how;
    how.set_pretranspose_B(transposed);
    const unsigned parts = Parts::of(static_cast<double>(rows) * depth * columns / 4);
    const Parts scope(parts);
    auto gemm = std::make_shared<op::ll::CpuGemmAssemblyDispatch>();
    gemm->configure(&input, &weight, nullptr, &sums, how);
    if (!gemm->is_configured()) refuse_by_acl("a quantized dense layer", "no kernel for these sizes");
    return std::make_shared<Function>(
        gemm, parts, std::vector<Operand>{{ACL_SRC_0, input}, {ACL_SRC_1, weight}, {ACL_DST, sums}});
}

ConvolutionShape dense_shape(int64_t rows, int64_t depth, int64_t columns) {
    return {rows, 1, 1, depth, columns, 1, 1, 1, 1, 0, 0, 0, 0};
}

/// A layer's kind, its sizes and what the sums become.
struct Layer {
    ConvolutionShape shape;  // of a dense layer: batch x channels times channels x outputs
    bool transposed;         // the weight is outputs x ... x channels
    Scale input;
    float output_scale;  // 1 for real values

    int64_t depth() const { return shape.kernel_height * shape.kernel_width * shape.channels; }

    std::string text() const {
        std::ostringstream text;
        text.precision(9);
        text << shape.text() << transposed << ' ' << input.scale << ' ' << input.zero << ' ' << output_scale;
        return text.str();
    }
};

std::shared_ptr<QuantizedFunction> make(const Layer &layer, const QuantizedWeights &weights,
                                        std::shared_ptr<Function> function) {
    const int64_t outputs = layer.shape.outputs;
    const int64_t depth = layer.depth();
    auto made = std::make_shared<QuantizedFunction>();
    made->function = std::move(function);
    for (int64_t output = 0; output < outputs; ++output) {
        int32_t sum = 0;
        for (int64_t i = 0; i < depth; ++i) {
            sum += weights.values[layer.transposed ? output * depth + i : i * outputs + output];
        }
        made->offsets.push_back(weights.bias[output] - layer.input.zero * sum);
        made->scales.push_back(layer.input.scale * weights.scales[output] / layer.output_scale);
    }
    return made;
}

/// Where sums are stored: in the place of the output if that is real values, as both have 32 bits.
int32_t *place_of_sums(float *output, const Scratch &) { return reinterpret_cast<int32_t *>(output); }
int32_t *place_of_sums(int8_t *, const Scratch &scratch) { return scratch.as<int32_t>(); }

void finish(const QuantizedFunction &made, const int32_t *sums, float *output, int64_t rows, int64_t columns,
            int32_t) {
    to_float(sums, output, rows, columns, made.scales.data(), made.offsets.data());
}
void finish(const QuantizedFunction &made, const int32_t *sums, int8_t *output, int64_t rows, int64_t columns,
            int32_t zero) {
    to_int8(sums, output, rows, columns, made.scales.data(), made.offsets.data(), zero);
}

template <class Output>
void run(QuantizedFunction &made, const int8_t *input, const int8_t *weight, Output *output, int64_t rows,
         int64_t columns, int32_t zero) {
    const Scratch scratch(sizeof(Output) == sizeof(int32_t) ? 0 : rows * columns * sizeof(int32_t));
    int32_t *sums = place_of_sums(output, scratch);
    made.function->run({{ACL_SRC_0, input}, {ACL_SRC_1, weight}, {ACL_DST, sums}});
    const Split by_row(rows, std::max<int64_t>(1, kMostInTask / columns));
    parallel(by_row.parts, [&](size_t part) {
        const int64_t first = by_row.begin(part) * columns;
        finish(made, sums + first, output + first, by_row.length_of(part), columns, zero);
    });
}

template <class Output>
void dense(const int8_t *input, const QuantizedWeights &weights, Output *output, Layer layer, int32_t zero,
           const std::string &key) {
    const int64_t rows = layer.shape.batch;
    const int64_t depth = layer.shape.channels;
    const int64_t columns = layer.shape.outputs;
    const Split by_row(rows, std::max<int64_t>(1, kMostBytes / (kCopyOfRow + 4. * columns)));
    layer.shape.batch = by_row.size;
    Cache::get().with<QuantizedFunction>(
        key, "int8 linear " + layer.text(),
        [&] { return make(layer, weights, make_linear(by_row.size, depth, columns, layer.transposed)); },
        [&](QuantizedFunction &made) {
            for (int64_t part = 0; part < by_row.parts; ++part) {
                const int64_t row = by_row.full_begin(part);
                run(made, input + row * depth, weights.values, output + row * columns, by_row.size, columns,
                    zero);
            }
        });
}

template <class Output>
void convolve(const int8_t *input, const QuantizedWeights &weights, Output *output, Layer layer, int32_t zero,
              const std::string &key) {
    const ConvolutionShape whole = layer.shape;
    if (whole.pointwise()) {
        layer.shape = dense_shape(whole.batch * whole.height * whole.width, whole.channels, whole.outputs);
        dense(input, weights, output, layer, zero, key);
        return;
    }
    const Tiles tiles(whole, whole.output_width() * (kCopyOfRow + 4. * whole.outputs));
    const ConvolutionShape piece = layer.shape = tiles.piece();
    Cache::get().with<QuantizedFunction>(
        key, "int8 convolution " + layer.text(),
        [&] { return make(layer, weights, make_convolution(piece, layer.input.zero)); },
        [&](QuantizedFunction &made) {
            const auto outside = static_cast<int8_t>(layer.input.zero);
            tiles.each(input, output, outside, [&](const int8_t *from, Output *to) {
                run(made, from, weights.values, to,
                    piece.batch * piece.output_height() * piece.output_width(), piece.outputs, zero);
            });
        });
}

}  // namespace

void quantized_convolution(const int8_t *input, const QuantizedWeights &weights, int8_t *output,
                           const ConvolutionShape &shape, Scale input_scale, Scale output_scale,
                           const std::string &key) {
    convolve(input, weights, output, {shape, true, input_scale, output_scale.scale}, output_scale.zero, key);
}

void quantized_convolution(const int8_t *input, const QuantizedWeights &weights, float *output,
                           const ConvolutionShape &shape, Scale input_scale, const std::string &key) {
    convolve(input, weights, output, {shape, true, input_scale, 1.F}, 0, key);
}

void quantized_linear(const int8_t *input, const QuantizedWeights &weights, int8_t *output, int64_t rows,
                      int64_t depth, int64_t columns, Scale input_scale, Scale output_scale,
                      const std::string &key) {
    dense(input, weights, output, {dense_shape(rows, depth, columns), false, input_scale, output_scale.scale},
          output_scale.zero, key);
}

void quantized_linear(const int8_t *input, const QuantizedWeights &weights, float *output, int64_t rows,
                      int64_t depth, int64_t columns, Scale input_scale, const std::string &key) {
    dense(input, weights, output, {dense_shape(rows, depth, columns), false, input_scale, 1.F}, 0, key);
}

void quantize(const float *input, int8_t *output, int64_t count, Scale scale) {
    const Split split(count, kMostInTask);
    parallel(split.parts, [&](size_t part) {
        to_int8(input + split.begin(part), output + split.begin(part), split.length_of(part), scale.scale,
                scale.zero);
    });
}

}  // namespace sonic::acl
