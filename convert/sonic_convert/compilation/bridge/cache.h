// Functions that are configured once and used by many calls.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace sonic::acl {

/// Functions with constants, by the key of the constants (a hash of their content, given at compile time: an
/// address can be reused for others) and the rest of their configuration.
///
/// All callers share one function and wait for each other: its reshaped weights then exist once, and the
/// threads would be shared anyway.
class Cache {
public:
    static Cache &get() {
        static auto *cache = new Cache;
        return *cache;
    }

    /// use(function) with the key's function, which make() returns in a shared_ptr where there is none yet.
    template <class Made, class Make, class Use>
    void with(const std::string &key, const std::string &configuration, Make make, Use use) {
        const std::shared_ptr<Slot> slot = find(key, configuration);
        const std::lock_guard lock(slot->mutex);
        if (!slot->function) slot->function = make();
        use(*static_cast<Made *>(slot->function.get()));
    }

    void forget(const std::string &key) {
        const std::lock_guard lock(mutex_);
        slots_.erase(key);
    }

    void clear() {
        const std::lock_guard lock(mutex_);
        slots_.clear();
    }

private:
    struct Slot {
        std::mutex mutex;
        std::shared_ptr<void> function;
    };

    std::shared_ptr<Slot> find(const std::string &key, const std::string &configuration) {
        const std::lock_guard lock(mutex_);
        auto &slot = slots_[key][configuration];
        if (!slot) slot = std::make_shared<Slot>();
        return slot;
    }

    std::mutex mutex_;
    std::unordered_map<std::string, std::map<std::string, std::shared_ptr<Slot>>> slots_;
};

/// Functions without weights, by their configuration: as many of each as there were callers at one time.
template <class Key, class Made>
class Pool {
public:
    class Lease {
    public:
        Lease(Pool &pool, const Key &key) : pool_(pool), key_(key), made_(pool.take(key)) {
            if (!made_) made_ = std::make_unique<Made>(key);
        }
        ~Lease() { pool_.put(key_, std::move(made_)); }
        Lease(const Lease &) = delete;
        Lease &operator=(const Lease &) = delete;

        Made *operator->() const { return made_.get(); }

    private:
        Pool &pool_;
        Key key_;
        std::unique_ptr<Made> made_;
    };

    static Pool &get() {
        static auto *pool = new Pool;
        return *pool;
    }

    void clear() {
        const std::lock_guard lock(mutex_);
        spares_.clear();
    }

private:
    std::unique_ptr<Made> take(const Key &key) {
        const std::lock_guard lock(mutex_);
        const auto found = spares_.find(key);
        if (found == spares_.end() || found->second.empty()) return nullptr;
        auto made = std::move(found->second.back());
        found->second.pop_back();
        return made;
    }

    void put(const Key &key, std::unique_ptr<Made> made) {
        const std::lock_guard lock(mutex_);
        spares_[key].push_back(std::move(made));
    }

    std::mutex mutex_;
    std::map<Key, std::vector<std::unique_ptr<Made>>> spares_;
};

}  // namespace sonic::acl
