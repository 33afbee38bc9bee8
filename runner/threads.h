// ExecuTorch's thread pool, whose header the wheel does not carry although its library has the functions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace executorch::extension::threadpool {

class ThreadPool;  // only ever behind a pointer that the library gives
ThreadPool* get_threadpool();

class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t threads);  // before a program captures the pool
};

}  // namespace executorch::extension::threadpool
