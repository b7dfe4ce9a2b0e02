#include "workers.h"

#include <arm_compute/core/CPP/ICPPKernel.h>
#include <arm_compute/core/ITensorPack.h>
#include <arm_compute/runtime/IScheduler.h>
#include <arm_compute/runtime/Scheduler.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace sonic::acl {
namespace {

constexpr double kOperationsPerPart = 2e6;  // some hundred microseconds: far more than waking a thread takes
constexpr unsigned kMostParts = 64;

thread_local unsigned parts_here = 1;
thread_local bool inside_task = false;

struct Job {
    Job(size_t count, const std::function<void(size_t)> &task) : count(count), task(task) {}

    const size_t count;
    const std::function<void(size_t)> &task;  // outlives the job's last index, not the job itself
    std::atomic<size_t> next{0};
    std::mutex mutex{};
    std::condition_variable all_done{};
    size_t done{0};
    std::exception_ptr error{};

    void work() {
        const bool outer = std::exchange(inside_task, true);
        for (size_t index = next++; index < count; index = next++) {
            std::exception_ptr thrown;
            try {
                task(index);
            } catch (...) {
                thrown = std::current_exception();
            }
            const std::lock_guard lock(mutex);
            if (thrown && !error) error = thrown;
            if (++done == count) all_done.notify_all();
        }
        inside_task = outer;
    }
};

class Workers {
public:
    // Never destroyed: at the process's end threads may still wait here, and joining them while libraries are
    // being unloaded can hang.
    static Workers &get() {
        static auto *workers = new Workers;
        return *workers;
    }

    void resize(unsigned count) {
        const std::lock_guard busy(busy_);
        threads_ = count ? count : std::max(1U, std::thread::hardware_concurrency());
        const std::lock_guard lock(mutex_);
        while (started_ + 1 < threads_) {
            std::thread([this] { wait_for_jobs(); }).detach();
            ++started_;
        }
    }

    void run(size_t count, const std::function<void(size_t)> &task) {
        std::unique_lock busy(busy_, std::defer_lock);
        if (count < 2 || threads_ < 2 || inside_task || !busy.try_lock()) {
            for (size_t index = 0; index < count; ++index) task(index);
            return;
        }
        const auto job = std::make_shared<Job>(count, task);
        const auto helpers = std::min<size_t>(threads_, count) - 1;
        {
            const std::lock_guard lock(mutex_);
            job_ = job;
            helpers_wanted_ = helpers;
        }
        for (size_t helper = 0; helper < helpers; ++helper) wake_.notify_one();
        job->work();
        {
            std::unique_lock lock(job->mutex);
            job->all_done.wait(lock, [&] { return job->done == job->count; });
        }
        if (job->error) std::rethrow_exception(job->error);
    }

private:
    Workers() { resize(0); }

    void wait_for_jobs() {
        for (;;) {
            std::shared_ptr<Job> job;
            {
                std::unique_lock lock(mutex_);
                wake_.wait(lock, [&] { return helpers_wanted_ > 0; });
                --helpers_wanted_;
                job = job_;
            }
            job->work();
        }
    }

    std::mutex busy_;  // held by the caller whose tasks are being shared
    std::atomic<unsigned> threads_{1};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::shared_ptr<Job> job_;
    size_t helpers_wanted_{0};
    unsigned started_{0};
};

class Scheduler final : public arm_compute::IScheduler {
public:
    void set_num_threads(unsigned) override {}

    unsigned num_threads() const override { return parts_here; }

    void schedule(arm_compute::ICPPKernel *kernel, const Hints &hints) override {
        arm_compute::ITensorPack none;
        schedule_common(kernel, hints, kernel->window(), none);
    }

    void schedule_op(arm_compute::ICPPKernel *kernel, const Hints &hints, const arm_compute::Window &window,
                     arm_compute::ITensorPack &tensors) override {
        schedule_common(kernel, hints, window, tensors);
    }

protected:
    void run_workloads(std::vector<Workload> &workloads) override {
        // By thread_id a kernel finds its scratch memory, which exists once for every configured part, and
        // sometimes its share of the work: part i has the id i, whichever thread it runs in.
        const unsigned parts = std::min<size_t>(parts_here, workloads.size());
        parallel(parts, [&](size_t part) {
            arm_compute::ThreadInfo info;
            info.thread_id = static_cast<int>(part);
            info.num_threads = static_cast<int>(parts);
            info.cpu_info = &cpu_info();
            for (size_t index = part; index < workloads.size(); index += parts) workloads[index](info);
        });
    }
};

}  // namespace

void set_threads(unsigned count) { Workers::get().resize(count); }

void parallel(size_t count, const std::function<void(size_t)> &task) { Workers::get().run(count, task); }

Parts::Parts(unsigned count) : outer_(parts_here) { parts_here = count; }

Parts::~Parts() { parts_here = outer_; }

unsigned Parts::of(double operations) {
    return static_cast<unsigned>(std::clamp(operations / kOperationsPerPart, 1.0, double{kMostParts}));
}

void install_scheduler() { arm_compute::Scheduler::set(std::make_shared<Scheduler>()); }

}  // namespace sonic::acl
