// Large convolutions in pieces, so that ACL's additional memory stays small.
#pragma once

#include "convolution.h"
#include "function.h"
#include "split.h"

#include <algorithm>
#include <cstring>

namespace sonic::acl {

/// A convolution in equal pieces: some images each or, where one image is too much, some rows of it.
///
/// All pieces have one shape, so that one configured function (and its reshaped weights) serves all; the last
/// one overlaps the one before where they do not divide evenly. Rows are copied with their neighbours to
/// scratch memory, where those outside of the image are zero (or the zero point).
class Tiles {
public:
    /// bytes_per_row: what ACL needs for a row of output in one image.
    Tiles(const ConvolutionShape &shape, double bytes_per_row)
        : whole_(shape),
          rows_(shape.output_height(), std::max<int64_t>(1, kMostBytes / bytes_per_row)),
          images_(shape.batch, std::max<int64_t>(1, kMostBytes / (bytes_per_row * shape.output_height()))) {
        if (in_rows()) images_ = Split(shape.batch, 1);
    }

    ConvolutionShape piece() const {
        ConvolutionShape piece = whole_;
        piece.batch = images_.size;
        if (in_rows()) {
            piece.height = (rows_.size - 1) * whole_.stride_height + whole_.kernel_height;
            piece.pad_top = piece.pad_bottom = 0;
        }
        return piece;
    }

    /// run(input, output) for every piece.
    template <class Input, class Output, class Run>
    void each(const Input *input, Output *output, Input outside, Run run) const {
        const int64_t input_row = whole_.width * whole_.channels;
        const int64_t output_row = whole_.output_width() * whole_.outputs;
        const int64_t output_height = whole_.output_height();
        const Scratch scratch(in_rows() ? piece().height * input_row * sizeof(Input) : 0);
        for (int64_t part = 0; part < images_.parts; ++part) {
            const int64_t image = images_.full_begin(part);
            const Input *from = input + image * whole_.height * input_row;
            Output *to = output + image * output_height * output_row;
            for (int64_t strip = 0; strip < rows_.parts; ++strip) {
                if (!in_rows()) {
                    run(from, to);
                    break;
                }
                const int64_t row = rows_.full_begin(strip);
                copy_rows(from, row * whole_.stride_height - whole_.pad_top, outside, scratch.as<Input>());
                run(static_cast<const Input *>(scratch.as<Input>()), to + row * output_row);
            }
        }
    }

private:
    static constexpr double kMostBytes = 32e6;

    bool in_rows() const { return rows_.parts > 1; }

    template <class Input>
    void copy_rows(const Input *image, int64_t first, Input outside, Input *to) const {
        const int64_t length = whole_.width * whole_.channels;
        const int64_t height = piece().height;
        const int64_t begin = std::clamp<int64_t>(-first, 0, height);
        const int64_t end = std::clamp<int64_t>(whole_.height - first, begin, height);
        std::fill(to, to + begin * length, outside);
        std::memcpy(to + begin * length, image + (first + begin) * length,
                    (end - begin) * length * sizeof(Input));
        std::fill(to + end * length, to + height * length, outside);
    }

    ConvolutionShape whole_;
    Split rows_;
    Split images_;
};

}  // namespace sonic::acl
