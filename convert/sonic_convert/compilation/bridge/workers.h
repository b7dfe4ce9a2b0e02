// Threads, and how ACL's kernels are split among them.
#pragma once

#include <cstddef>
#include <functional>

namespace sonic::acl {

/// How many threads a call may use, the caller's included; 0 means one for every processor.
void set_threads(unsigned count);

/// Calls task(0) ... task(count - 1), shared among the threads. Runs in the caller alone where the threads
/// are busy with another caller's tasks or where the caller is such a task itself.
void parallel(size_t count, const std::function<void(size_t)> &task);

/// The number of parts into which ACL splits the kernels that this thread configures and runs meanwhile.
///
/// ACL chooses kernels and the order of sums by the number of threads that it is configured for. The parts
/// follow from the amount of work alone and are shared among however many threads there are, so the result
/// does not depend on that number, and small work stays in the caller's thread.
class Parts {
public:
    explicit Parts(unsigned count);
    ~Parts();
    Parts(const Parts &) = delete;
    Parts &operator=(const Parts &) = delete;

    /// The parts for that many multiplications and additions.
    static unsigned of(double operations);

private:
    unsigned outer_;
};

/// Puts the bridge's scheduler in the place of ACL's; once, before any other use of ACL.
void install_scheduler();

}  // namespace sonic::acl
