#include "function.h"

#include "workers.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <new>

namespace sonic::acl {
namespace {

using arm_compute::DataType;
using arm_compute::TensorInfo;
using arm_compute::TensorShape;

constexpr size_t kAlignment = 4096;  // the largest that ACL's operators require

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

struct Spares {
    std::mutex mutex;
    std::vector<Buffer> buffers;

    static Spares &get() {
        static auto *spares = new Spares;  // threads may still borrow while the process ends
        return *spares;
    }
};

}  // namespace

Buffer::Buffer(size_t bytes) : size_(aligned(bytes)) {
    if (size_ == 0) return;
    data_.reset(static_cast<std::byte *>(std::aligned_alloc(kAlignment, size_)));
    if (!data_) throw std::bad_alloc();
}

void Buffer::Free::operator()(std::byte *data) const { std::free(data); }

Scratch::Scratch(size_t bytes) {
    if (bytes == 0) return;
    auto &spares = Spares::get();
    {
        const std::lock_guard lock(spares.mutex);
        auto &buffers = spares.buffers;
        // The smallest that suffices, otherwise the largest, which is then replaced by a larger one.
        const auto rank = [bytes](const Buffer &buffer) {
            return buffer.size() >= bytes ? buffer.size()
                                          : std::numeric_limits<size_t>::max() - buffer.size();
        };
        const auto best = std::min_element(buffers.begin(), buffers.end(),
                                           [&](const auto &a, const auto &b) { return rank(a) < rank(b); });
        if (best != buffers.end()) {
            buffer_ = std::move(*best);
            buffers.erase(best);
        }
    }
    if (buffer_.size() < bytes) {
        buffer_ = Buffer();
        buffer_ = Buffer(bytes);
    }
}

Scratch::~Scratch() {
    if (buffer_.size() == 0) return;
    auto &spares = Spares::get();
    const std::lock_guard lock(spares.mutex);
    spares.buffers.push_back(std::move(buffer_));
}

void Scratch::clear() {
    auto &spares = Spares::get();
    const std::lock_guard lock(spares.mutex);
    spares.buffers.clear();
}

Function::Function(const arm_compute::experimental::MemoryRequirements &workspace, unsigned parts,
                   const std::vector<Operand> &operands, Step prepare, Step run)
    : parts_(parts), prepare_(std::move(prepare)), run_(std::move(run)) {
    for (const auto &operand : operands) {
        auto tensor = std::make_unique<arm_compute::Tensor>();
        tensor->allocator()->init(operand.info);
        operands_.emplace_back(operand.slot, std::move(tensor));
    }
    size_t offsets[3] = {0, 0, 0};
    for (const auto &wanted : workspace) {
        if (wanted.size == 0) continue;
        auto &offset = offsets[static_cast<size_t>(wanted.lifetime)];
        auto part = std::make_unique<Part>();
        part->slot = wanted.slot;
        part->lifetime = wanted.lifetime;
        part->bytes = wanted.size;
        part->offset = offset;
        part->tensor.allocator()->init(TensorInfo(TensorShape(wanted.size), 1, DataType::U8));
        offset += aligned(wanted.size);
        workspace_.push_back(std::move(part));
    }
}

size_t Function::bytes_of(Lifetime lifetime) const {
    size_t end = 0;
    for (const auto &part : workspace_) {
        if (part->lifetime == lifetime) end = std::max(end, part->offset + part->bytes);
    }
    return end;
}

void Function::place(Lifetime lifetime, std::byte *memory) {
    for (const auto &part : workspace_) {
        if (part->lifetime == lifetime) part->tensor.allocator()->import_memory(memory + part->offset);
    }
}

arm_compute::ITensorPack Function::pack() {
    arm_compute::ITensorPack pack;
    for (auto &[slot, tensor] : operands_) {
        if (slot == arm_compute::ACL_DST) {
            pack.add_tensor(slot, tensor.get());
        } else {
            pack.add_const_tensor(slot, tensor.get());
        }
    }
    for (const auto &part : workspace_) {
        if (part->lifetime != Lifetime::Prepare || !prepared_) pack.add_tensor(part->slot, &part->tensor);
    }
    return pack;
}

void Function::run(std::initializer_list<Binding> bindings) {
    const Parts parts(parts_);
    for (const auto &binding : bindings) {
        for (auto &[slot, tensor] : operands_) {
            if (slot == binding.slot) tensor->allocator()->import_memory(const_cast<void *>(binding.data));
        }
    }
    const Scratch temporary(bytes_of(Lifetime::Temporary));
    place(Lifetime::Temporary, temporary.as<std::byte>());
    if (!prepared_) {
        persistent_ = Buffer(bytes_of(Lifetime::Persistent));
        place(Lifetime::Persistent, persistent_.data());
        const Buffer once(bytes_of(Lifetime::Prepare));
        place(Lifetime::Prepare, once.data());
        // A separate pack: preparing leaves addresses in it that are invalid afterwards.
        auto constants = pack();
        prepare_(constants);
        prepared_ = true;
    }
    auto tensors = pack();
    run_(tensors);
}

}  // namespace sonic::acl
