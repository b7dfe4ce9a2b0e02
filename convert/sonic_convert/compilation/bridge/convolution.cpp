#include "convolution.h"

#include "cache.h"
#include "errors.h"
#include "function.h"
#include "split.h"
#include "tiles.h"
#include "workers.h"

#include <arm_compute/core/Types.h>
#include <arm_compute/function_info/GEMMInfo.h>
#include <arm_compute/runtime/FunctionDescriptors.h>
#include <arm_compute/runtime/experimental/operators/CpuGemm.h>
#include <arm_compute/runtime/experimental/operators/CpuGemmDirectConv2d.h>
#include <arm_compute/runtime/experimental/operators/CpuWinogradConv2d.h>

#include <algorithm>
#include <sstream>
#include <vector>

namespace sonic::acl {
namespace {

namespace op = arm_compute::experimental::op;
using arm_compute::ACL_DST;
using arm_compute::ACL_SRC_0;
using arm_compute::ACL_SRC_1;
using arm_compute::ACL_SRC_2;
using arm_compute::DataType;
using arm_compute::TensorInfo;
using arm_compute::TensorShape;

constexpr int64_t kMostRows = 16384;      // of a dense layer at once: ACL's copy of them takes 1.5 KB each
constexpr double kCopyOfRow = 4.0 * 512;  // the most that ACL copies of a row of a product at once, in bytes
// Up to so many channels the error of Winograd's 4 x 4 tiles stays below 2e-6 of the result (it is 3.6e-6
// with 320 channels and 8e-6 with 1280, where a product of matrices has 0.4e-6).
constexpr int64_t kMostWinogradChannels = 64;
constexpr int64_t kMostPad = 3;  // with 4 and more ACL's transforms read out of bounds

TensorInfo nhwc(const TensorShape &shape) {
    TensorInfo info(shape, 1, DataType::F32);
    info.set_data_layout(arm_compute::DataLayout::NHWC);
    return info;
}

struct Infos {
    explicit Infos(const ConvolutionShape &s)
        : input(nhwc(TensorShape(s.channels, s.width, s.height, s.batch))),
          weight(nhwc(TensorShape(s.channels, s.kernel_width, s.kernel_height, s.outputs))),
          bias(nhwc(TensorShape(s.outputs))),
          output(nhwc(TensorShape(s.outputs, s.output_width(), s.output_height(), s.batch))),
          pads(s.stride_width, s.stride_height, s.pad_left, s.pad_right, s.pad_top, s.pad_bottom,
               arm_compute::DimensionRoundingType::FLOOR) {}

    std::vector<Operand> operands() const {
        return {{ACL_SRC_0, input}, {ACL_SRC_1, weight}, {ACL_SRC_2, bias}, {ACL_DST, output}};
    }

    TensorInfo input, weight, bias, output;
    arm_compute::PadStrideInfo pads;
};

struct Winograd {
    int64_t tile_height, tile_width;

    /// The tiles that ACL uses, which follow from the sizes; none where it has no transform.
    static Winograd of(const ConvolutionShape &s) {
        const int64_t most = std::max({s.pad_top, s.pad_left, s.pad_bottom, s.pad_right});
        const bool suits = s.stride_height == 1 && s.stride_width == 1 && most <= kMostPad;
        const auto kernel = [&](int64_t height, int64_t width) {
            return suits && s.kernel_height == height && s.kernel_width == width;
        };
        if (kernel(3, 3)) return s.height > 4 && s.width > 4 ? Winograd{4, 4} : Winograd{2, 2};
        if (kernel(3, 1)) return {6, 1};
        if (kernel(1, 3)) return {1, 6};
        if (kernel(5, 5)) return {2, 2};
        return {0, 0};
    }

    bool exists() const { return tile_height > 0; }

    int64_t products(const ConvolutionShape &s) const {  // of an output channel and an input channel
        return (s.output_width() + tile_width - 1) / tile_width *
               ((s.output_height() + tile_height - 1) / tile_height) * (tile_height + s.kernel_height - 1) *
               (tile_width + s.kernel_width - 1);
    }

    bool pays(const ConvolutionShape &s) const {
        const bool exact =
            tile_height == 2 ? s.kernel_height == 3 : tile_height == 4 && s.channels <= kMostWinogradChannels;
        const double direct =
            static_cast<double>(s.output_width()) * s.output_height() * s.kernel_height * s.kernel_width;
        return exists() && exact && 1.2 * products(s) < direct;
    }
};

std::shared_ptr<Function> make_direct(const ConvolutionShape &shape) {
    Infos infos(shape);
    const arm_compute::Conv2dInfo how(infos.pads, {1, 1}, {}, false, 1);
    require(op::CpuGemmDirectConv2d::validate(&infos.input, &infos.weight, &infos.bias, &infos.output, how),
            "a convolution");
    const unsigned parts = Parts::of(shape.operations());
    const Parts scope(parts);
    auto convolution = std::make_shared<op::CpuGemmDirectConv2d>();
    convolution->configure(&infos.input, &infos.weight, &infos.bias, &infos.output, how);
    return std::make_shared<Function>(convolution, parts, infos.operands());
}

std::shared_ptr<Function> make_winograd(const ConvolutionShape &shape) {
    Infos infos(shape);
    require(
        op::CpuWinogradConv2d::validate(&infos.input, &infos.weight, &infos.bias, &infos.output, infos.pads),
        "Winograd's convolution");
    const unsigned parts = Parts::of(shape.operations() / 4);
    const Parts scope(parts);
    auto convolution = std::make_shared<op::CpuWinogradConv2d>();
    convolution->configure(&infos.input, &infos.weight, &infos.bias, &infos.output, infos.pads);
    return std::make_shared<Function>(convolution, parts, infos.operands());
}

std::shared_ptr<Function> make_linear(int64_t rows, int64_t depth, int64_t columns, bool transposed) {
    const TensorInfo input(TensorShape(depth, rows), 1, DataType::F32);
    const TensorInfo weight(transposed ? TensorShape(depth, columns) : TensorShape(columns, depth), 1,
                            DataType::F32);
    const TensorInfo bias(TensorShape(columns), 1, DataType::F32);
    TensorInfo output(TensorShape(columns, rows), 1, DataType::F32);
    arm_compute::GEMMInfo how;
    how.set_pretranspose_B(transposed);
    require(op::CpuGemm::validate(&input, &weight, &bias, &output, 1.F, 1.F, how), "a dense layer");
    const unsigned parts = Parts::of(static_cast<double>(rows) * depth * columns);
    const Parts scope(parts);
    auto gemm = std::make_shared<op::CpuGemm>();
    gemm->configure(&input, &weight, &bias, &output, 1.F, 1.F, how);
    return std::make_shared<Function>(
        gemm, parts,
        std::vector<Operand>{{ACL_SRC_0, input}, {ACL_SRC_1, weight}, {ACL_SRC_2, bias}, {ACL_DST, output}});
}

}  // namespace

std::string ConvolutionShape::text() const {
    std::ostringstream text;
    for (const int64_t value : {batch, height, width, channels, outputs, kernel_height, kernel_width,
                                stride_height, stride_width, pad_top, pad_left, pad_bottom, pad_right}) {
        text << value << ' ';
    }
    return text.str();
}

void convolution(const float *input, const float *weight, const float *bias, float *output,
                 const ConvolutionShape &shape, Method method, const std::string &key) {
    if (shape.pointwise() && method != Method::kWinograd) {
        linear(input, weight, bias, output, shape.batch * shape.height * shape.width, shape.channels,
               shape.outputs, true, key);
        return;
    }
    const auto transform = Winograd::of(shape);
    const bool winograd = method == Method::kWinograd || (method == Method::kAuto && transform.pays(shape));
    if (winograd && !transform.exists()) {
        refuse("Winograd's method needs 3 x 3, 3 x 1, 1 x 3 or 5 x 5 weights, stride 1 and pads of at most ",
               kMostPad);
    }
    const double bytes_per_row =
        winograd ? 4.0 * transform.products(shape) * (shape.channels + shape.outputs) / shape.output_height()
                 : kCopyOfRow * shape.output_width();
    const Tiles tiles(shape, bytes_per_row);
    const ConvolutionShape piece = tiles.piece();
    Cache::get().with<Function>(
        key, (winograd ? "winograd " : "direct ") + piece.text(),
        [&] { return winograd ? make_winograd(piece) : make_direct(piece); },
        [&](Function &function) {
            tiles.each(input, output, 0.F, [&](const float *from, float *to) {
                function.run({{ACL_SRC_0, from}, {ACL_SRC_1, weight}, {ACL_SRC_2, bias}, {ACL_DST, to}});
            });
        });
}

void linear(const float *input, const float *weight, const float *bias, float *output, int64_t rows,
            int64_t depth, int64_t columns, bool transposed, const std::string &key) {
    const Split by_row(rows, kMostRows);
    std::ostringstream configuration;
    configuration << (transposed ? "transposed " : "linear ") << by_row.size << ' ' << depth << ' '
                  << columns;
    Cache::get().with<Function>(
        key, configuration.str(), [&] { return make_linear(by_row.size, depth, columns, transposed); },
        [&](Function &function) {
            for (int64_t part = 0; part < by_row.parts; ++part) {
                const int64_t row = by_row.full_begin(part);
                function.run({{ACL_SRC_0, input + row * depth},
                              {ACL_SRC_1, weight},
                              {ACL_SRC_2, bias},
                              {ACL_DST, output + row * columns}});
            }
        });
}

}  // namespace sonic::acl
