// A configured ACL operator with its tensors and memory.
#pragma once

#include <arm_compute/core/ITensorPack.h>
#include <arm_compute/core/TensorInfo.h>
#include <arm_compute/core/experimental/Types.h>
#include <arm_compute/runtime/Tensor.h>

#include <cstddef>
#include <functional>
#include <initializer_list>
#include <memory>
#include <utility>
#include <vector>

namespace sonic::acl {

/// Aligned, uninitialized memory.
class Buffer {
public:
    Buffer() = default;
    explicit Buffer(size_t bytes);

    std::byte *data() const { return data_.get(); }
    size_t size() const { return size_; }

private:
    struct Free {
        void operator()(std::byte *data) const;
    };
    std::unique_ptr<std::byte, Free> data_;
    size_t size_{0};
};

/// Memory that a call borrows; consecutive calls get the same.
class Scratch {
public:
    explicit Scratch(size_t bytes);
    ~Scratch();
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;

    template <class Value>
    Value *as(size_t offset = 0) const {
        return reinterpret_cast<Value *>(buffer_.data() + offset);
    }

    /// Returns memory that no call holds to the system.
    static void clear();

private:
    Buffer buffer_;
};

/// An operand's slot in ACL's packs (ACL_SRC_0, ...) and its description.
struct Operand {
    int slot;
    arm_compute::TensorInfo info;
};

/// An operand's slot and the address of its values in this call.
struct Binding {
    int slot;
    const void *data;
};

/// A configured operator. ACL's kernels keep the addresses of the running call, so one caller at a time.
///
/// Constant weights are reshaped by the first run, into memory that belongs to the function; memory that only
/// a run needs is borrowed.
class Function {
public:
    /// The operator has to be configured already, with the same number of parts.
    template <class Operator>
    Function(std::shared_ptr<Operator> op, unsigned parts, const std::vector<Operand> &operands)
        : Function(
              op->workspace(), parts, operands, [op](arm_compute::ITensorPack &pack) { op->prepare(pack); },
              [op](arm_compute::ITensorPack &pack) { op->run(pack); }) {}

    void run(std::initializer_list<Binding> bindings);

private:
    using Step = std::function<void(arm_compute::ITensorPack &)>;
    using Lifetime = arm_compute::experimental::MemoryLifetime;

    struct Part {
        int slot;
        Lifetime lifetime;
        size_t bytes;
        size_t offset;
        arm_compute::Tensor tensor;
    };

    Function(const arm_compute::experimental::MemoryRequirements &workspace, unsigned parts,
             const std::vector<Operand> &operands, Step prepare, Step run);
    size_t bytes_of(Lifetime lifetime) const;
    void place(Lifetime lifetime, std::byte *memory);
    arm_compute::ITensorPack pack();

    unsigned parts_;
    Step prepare_;
    Step run_;
    bool prepared_{false};
    std::vector<std::pair<int, std::unique_ptr<arm_compute::Tensor>>> operands_;
    std::vector<std::unique_ptr<Part>> workspace_;
    Buffer persistent_;
};

}  // namespace sonic::acl
