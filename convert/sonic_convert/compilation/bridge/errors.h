// Errors of the bridge: one clear sentence each, a ValueError or a RuntimeError in Python.
#pragma once

#include <arm_compute/core/Error.h>
#include <tvm/ffi/error.h>

#include <sstream>
#include <string>

namespace sonic::acl {

/// Throws: an argument cannot be used.
template <class... Parts>
[[noreturn]] void refuse(const Parts &...parts) {
    std::ostringstream text;
    (text << ... << parts);
    throw tvm::ffi::Error("ValueError", text.str(), "");
}

/// Throws: ACL does not support it.
[[noreturn]] inline void refuse_by_acl(const std::string &function, const std::string &reason) {
    throw tvm::ffi::Error("RuntimeError", "the Arm Compute Library refuses " + function + ": " + reason, "");
}

/// Throws ACL's own reason where its validate() fails.
inline void require(const arm_compute::Status &status, const char *function) {
    if (!status) refuse_by_acl(function, status.error_description());
}

}  // namespace sonic::acl
