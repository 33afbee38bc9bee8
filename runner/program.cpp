#include "program.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/extension/tensor/tensor_ptr.h>
#include <executorch/runtime/executor/memory_manager.h>
#include <executorch/runtime/executor/method.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>

#include "checksum.h"
#include "failure.h"
#include "operators.h"
#include "program_bytes.h"
#include "threads.h"

namespace lfm2 {
namespace {

namespace et = executorch::runtime;
using executorch::aten::ScalarType;
using executorch::extension::MallocMemoryAllocator;
using executorch::extension::TensorPtr;

std::string last_log;  // ExecuTorch's latest message: the reason behind an error code

void keep_log(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t, const char* message, size_t length) {
  if (level != kError && level != kFatal) return;
  last_log.assign(message, std::min<size_t>(length, 300));
  for (char& letter : last_log) letter = letter >= ' ' && letter <= '~' ? letter : '?';  // it quotes the file's bytes
}

// ExecuTorch ends the process where one of its own checks fails; then the reason is said and the exit code is ours.
void leave() {
  const std::string line = "lfm2_runner: ExecuTorch gave up: " + last_log + "\n";
  if (::write(STDERR_FILENO, line.data(), line.size()) < 0) ::_exit(kMisuse);
  ::_exit(kMisuse);
}

[[noreturn]] void refuse(const std::string& doing, et::Error error) {
  const std::string reason = last_log.empty() ? "" : " (" + last_log + ")";
  throw Failure("ExecuTorch " LFM2_EXECUTORCH_VERSION " failed to " + doing + ": " + et::to_string(error) + reason);
}

void require(et::Error error, const std::string& doing) {
  if (error != et::Error::Ok) refuse(doing, error);
}

template <typename T>
T take(et::Result<T> result, const std::string& doing) {
  if (!result.ok()) refuse(doing, result.error());
  return std::move(*result);
}

ScalarType scalar_type(const std::string& dtype) {
  if (dtype == "float32") return ScalarType::Float;
  if (dtype == "float16") return ScalarType::Half;
  if (dtype == "bfloat16") return ScalarType::BFloat16;
  if (dtype == "int64") return ScalarType::Long;
  throw Failure("dtype '" + dtype.substr(0, 40) + "' is none that lfm2_runner knows");
}

void check_tensor(const et::Result<et::TensorInfo>& found, const TensorSpec& spec, int64_t limit, const std::string& path) {
  const std::string where = path + ": '" + spec.name + "'";
  if (!found.ok()) throw Failure(where + " is not a tensor in the program");
  const auto sizes = found->sizes();
  bool same = found->scalar_type() == scalar_type(spec.dtype) && sizes.size() == spec.shape.size();
  for (size_t i = 0; same && i < sizes.size(); ++i) same = sizes[i] == (spec.shape[i] < 0 ? limit - 1 - spec.shape[i] : spec.shape[i]);
  for (size_t i = 0; same && i < found->dim_order().size(); ++i) same = found->dim_order()[i] == i;
  if (!same) throw Failure(where + " has another type or shape in the program than in the manifest");
  if (spec.written && found->is_memory_planned()) throw Failure(where + " would be copied into the program, not shared");
}

}  // namespace

void start_executorch() {
  et::runtime_init();
  et::register_pal(et::PalImpl::create(nullptr, leave, nullptr, nullptr, keep_log, nullptr, nullptr, __FILE__));
  register_operators();
}

size_t bytes_of(const std::string& dtype) { return executorch::runtime::elementSize(scalar_type(dtype)); }

size_t bytes_of(const TensorSpec& spec) {
  size_t bytes = bytes_of(spec.dtype);
  for (const int64_t size : spec.shape) {
    if (size < 0 || __builtin_mul_overflow(bytes, static_cast<size_t>(size), &bytes)) {
      throw Failure("'" + spec.name + "' has an impossible shape");
    }
  }
  return bytes;
}

namespace {

// A loaded method with memory of its own.
struct Callable {
  std::string name;
  MallocMemoryAllocator method_memory, temporary_memory;
  std::vector<std::unique_ptr<uint8_t, decltype(&std::free)>> planned;
  std::vector<et::Span<uint8_t>> spans;
  std::unique_ptr<et::HierarchicalAllocator> arena;
  std::unique_ptr<et::MemoryManager> memory;
  std::unique_ptr<et::Method> method;
  std::vector<TensorPtr> bound;  // what the method holds pointers to
  std::vector<int64_t> tokens;
  int64_t position = 0, max_tokens = 0;
};

void load(Callable& my, const et::Program& program, const et::MethodMeta& meta, const std::string& path) {
  for (size_t i = 0; i < meta.num_memory_planned_buffers(); ++i) {
    const int64_t size = take(meta.memory_planned_buffer_size(i), "read the memory plan");
    auto* memory = size < 0 ? nullptr : static_cast<uint8_t*>(std::calloc(static_cast<size_t>(size) + 64, 1));
    if (memory == nullptr) throw Failure(path + ": no memory for its plan of " + std::to_string(size) + " bytes");
    my.planned.emplace_back(memory, &std::free);
    my.spans.push_back({memory + (64 - reinterpret_cast<uintptr_t>(memory) % 64), static_cast<size_t>(size)});
  }
  my.arena = std::make_unique<et::HierarchicalAllocator>(et::Span<et::Span<uint8_t>>(my.spans.data(), my.spans.size()));
  my.memory = std::make_unique<et::MemoryManager>(&my.method_memory, my.arena.get(), &my.temporary_memory);
  my.method = std::make_unique<et::Method>(
      take(program.load_method(my.name.c_str(), my.memory.get()), "load the method " + my.name + " of " + path));
}

void bind(Callable& my, size_t index, const TensorSpec& spec, void* data) {
  const std::vector<executorch::aten::SizesType> sizes(spec.shape.begin(), spec.shape.end());
  my.bound[index] = executorch::extension::make_tensor_ptr(sizes, data, scalar_type(spec.dtype));
  require(my.method->set_input(et::EValue(*my.bound[index]), index), "take '" + spec.name + "'");
}

void execute(Callable& my, const std::vector<int64_t>& tokens, int64_t position) {
  if (tokens.empty() || static_cast<int64_t>(tokens.size()) > my.max_tokens) throw Failure("a call of no or too many tokens");
  last_log.clear();
  my.tokens = tokens;
  my.position = position;
  const auto count = static_cast<executorch::aten::SizesType>(tokens.size());
  my.bound[0] = executorch::extension::make_tensor_ptr({1, count}, my.tokens.data(), ScalarType::Long);
  my.bound[1] = executorch::extension::make_tensor_ptr({1}, &my.position, ScalarType::Long);
  require(my.method->set_input(et::EValue(*my.bound[0]), 0), "take the tokens");
  require(my.method->set_input(et::EValue(*my.bound[1]), 1), "take the position");
  require(my.method->execute(), "run");
  my.temporary_memory.reset();
}

// An output of `count` float32 elements, valid until the method's next call.
const float* floats(const Callable& my, size_t index, int64_t count, const std::string& what) {
  const et::EValue& output = my.method->get_output(index);
  if (!output.isTensor() || output.toTensor().scalar_type() != ScalarType::Float || output.toTensor().numel() != count) {
    throw Failure("the program returned no " + what);
  }
  return output.toTensor().const_data_ptr<float>();
}

}  // namespace

struct Program::Loaded {
  Loaded(const Manifest& manifest, const Content& model) : manifest(manifest), path(manifest.model_path), loader(model) {}

  Manifest manifest;
  std::string path;
  ProgramBytes loader;
  std::unique_ptr<et::Program> program;
  Callable forward, verify;
  std::vector<void*> states;  // by input
};

namespace {

void check_file(const Manifest& manifest, std::string_view bytes) {
  if (bytes.size() != manifest.model_size) {
    throw Failure(manifest.model_path + ": " + std::to_string(bytes.size()) + " bytes, the manifest says " +
                  std::to_string(manifest.model_size));
  }
  if (sha256(bytes) != manifest.model_sha256) {
    throw Failure(manifest.model_path + ": SHA-256 differs from the manifest; the file was altered or damaged");
  }
}

void check_method(const et::MethodMeta& meta, const std::string& path, const std::vector<TensorSpec>& inputs,
                  const std::vector<TensorSpec>& outputs, int64_t limit) {
  if (meta.num_inputs() != inputs.size() || meta.num_outputs() != outputs.size()) {
    throw Failure(path + ": " + std::to_string(meta.num_inputs()) + " inputs and " + std::to_string(meta.num_outputs()) +
                  " outputs, the manifest says " + std::to_string(inputs.size()) + " and " + std::to_string(outputs.size()));
  }
  for (size_t i = 0; i < inputs.size(); ++i) check_tensor(meta.input_tensor_meta(i), inputs[i], limit, path);
  for (size_t i = 0; i < outputs.size(); ++i) check_tensor(meta.output_tensor_meta(i), outputs[i], limit, path);
}

et::MethodMeta method_of(const et::Program& program, const std::string& name, const std::string& path) {
  return take(program.method_meta(name.c_str()), "find the method " + name + " in " + path);
}

}  // namespace

Program::Program(const Manifest& manifest, const Content& model, uint32_t threads) : loaded_(std::make_unique<Loaded>(manifest, model)) {
  Loaded& my = *loaded_;
  check_file(manifest, model.bytes);
  if (threads != 0) executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(threads);
  last_log.clear();
  my.program = std::make_unique<et::Program>(
      take(et::Program::load(&my.loader, et::Program::Verification::InternalConsistency), "load " + my.path));
  const et::MethodMeta meta = method_of(*my.program, manifest.method, my.path);
  check_method(meta, my.path, manifest.inputs, manifest.outputs, manifest.max_tokens);
  if (manifest.max_verified != 0) {
    check_verify(manifest);
    check_method(method_of(*my.program, kVerify, my.path), my.path, manifest.inputs, manifest.verified, manifest.max_verified);
  }
  my.forward.name = manifest.method;
  my.forward.max_tokens = manifest.max_tokens;
  my.forward.bound.resize(manifest.inputs.size());
  my.states.resize(manifest.inputs.size());
  load(my.forward, *my.program, meta, my.path);
}

Program::~Program() = default;

size_t Program::threads() const { return executorch::extension::threadpool::get_threadpool()->get_thread_count(); }

void Program::bind(size_t index, void* data) {
  Loaded& my = *loaded_;
  my.states.at(index) = data;
  lfm2::bind(my.forward, index, my.manifest.inputs[index], data);
}

const float* Program::run(const std::vector<int64_t>& tokens, int64_t position) {
  Loaded& my = *loaded_;
  execute(my.forward, tokens, position);
  return floats(my.forward, 0, my.manifest.vocab, "logits [1, " + std::to_string(my.manifest.vocab) + "]");
}

Program::Verified Program::verify(const std::vector<int64_t>& tokens, int64_t position) {
  Loaded& my = *loaded_;
  const Manifest& manifest = my.manifest;
  if (manifest.max_verified == 0) throw Failure("this artifact verifies no drafts; export it with options.speculation");
  if (my.verify.method == nullptr) {
    my.verify.name = kVerify;
    my.verify.max_tokens = manifest.max_verified;
    my.verify.bound.resize(manifest.inputs.size());
    load(my.verify, *my.program, method_of(*my.program, kVerify, my.path), my.path);
    for (size_t i = 2; i < manifest.inputs.size(); ++i) lfm2::bind(my.verify, i, manifest.inputs[i], my.states[i]);
  }
  execute(my.verify, tokens, position);
  const auto count = static_cast<int64_t>(tokens.size());
  Verified found{floats(my.verify, 0, count * manifest.vocab, "logits of every token"), {}};
  for (size_t i = 1; i < manifest.verified.size(); ++i) {
    const std::vector<int64_t>& shape = manifest.verified[i].shape;
    found.columns.push_back(floats(my.verify, i, (count - 1 - shape[1]) * shape[2], manifest.verified[i].name));
  }
  return found;
}

}  // namespace lfm2
