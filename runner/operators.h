// The operators that an explicit-state .pte needs and the executorch wheel's C++ libraries lack.
#pragma once

namespace lfm2 {

// Registers llama::update_cache and llama::custom_sdpa with ExecuTorch. Once, before a program is loaded.
void register_operators();

}  // namespace lfm2
