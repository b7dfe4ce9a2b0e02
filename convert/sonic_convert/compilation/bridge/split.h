// Lengths in even parts.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sonic::acl {

/// A length in parts of one size, of which only the last may be shorter.
struct Split {
    /// Parts of about at most that many, a multiple of step each where there is more than one.
    Split(int64_t length, int64_t most, int64_t step = 1) : length(length), parts(1), size(length) {
        if (length <= most) return;
        const int64_t wanted = (length + most - 1) / most;
        size = (length + wanted - 1) / wanted;
        size = std::min((size + step - 1) / step * step, length);
        parts = (length + size - 1) / size;
    }

    int64_t begin(int64_t part) const { return part * size; }
    int64_t length_of(int64_t part) const { return part + 1 < parts ? size : length - part * size; }
    /// Where a part of full size begins; the last one overlaps the one before.
    int64_t full_begin(int64_t part) const { return std::min(begin(part), length - size); }

    int64_t length;
    int64_t parts;
    int64_t size;
};

}  // namespace sonic::acl
