// Exceptions stop here: every exported function runs its body through `guarded`.
#pragma once
#include <c10/util/Exception.h>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <utility>

namespace rg {

inline char* message_of(const char* text) {
  char* copy = strdup(text);
  return copy != nullptr ? copy : strdup("out of memory");
}

template <typename F>
char* guarded(F&& body) noexcept {
  try {
    std::forward<F>(body)();
    return nullptr;
  } catch (const c10::Error& error) {
    return message_of(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return message_of(error.what());
  } catch (...) {
    return message_of("an exception of an unknown type");
  }
}

// A Rust value held from C++; dropped exactly once.
class Owned {
 public:
  Owned(void* data, void (*drop)(void*)) : data_(data), drop_(drop) {}
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() {
    if (data_ != nullptr) drop_(data_);
  }
  void* get() const { return data_; }
  void* release() { return std::exchange(data_, nullptr); }

 private:
  void* data_;
  void (*drop_)(void*);
};

}  // namespace rg
