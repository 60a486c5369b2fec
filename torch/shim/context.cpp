// Thread and process wide settings of libtorch (autocast, random state, determinism), and tensors over foreign memory.
#include "guard.h"
#include "shim.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/from_blob.h>

#include <memory>

namespace {

// The order of tch::Device as an int: -1 is the CPU, else the index of a CUDA device.
c10::Device device_of(int device) {
  return device < 0 ? c10::Device(c10::kCPU) : c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(device));
}

at::MemoryFormat channels_last_of(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.dim() == 4 || tensor.dim() == 5, "channels-last is for tensors of 4 or 5 dimensions, not ", tensor.dim());
  return tensor.dim() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::ChannelsLast3d;
}

}  // namespace

char* rg_autocast_enter(const rg_autocast* wanted, rg_autocast* before) {
  return rg::guarded([&] {
    const auto type = static_cast<c10::DeviceType>(wanted->device_type);
    *before = {wanted->device_type, at::autocast::is_autocast_enabled(type),
               static_cast<int>(at::autocast::get_autocast_dtype(type)), at::autocast::is_autocast_cache_enabled()};
    at::autocast::set_autocast_enabled(type, wanted->enabled);
    at::autocast::set_autocast_dtype(type, static_cast<at::ScalarType>(wanted->kind));
    at::autocast::set_autocast_cache_enabled(wanted->cache);
    at::autocast::increment_nesting();
  });
}

char* rg_autocast_leave(const rg_autocast* before) {
  return rg::guarded([&] {
    const auto type = static_cast<c10::DeviceType>(before->device_type);
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(type, before->enabled);
    at::autocast::set_autocast_dtype(type, static_cast<at::ScalarType>(before->kind));
    at::autocast::set_autocast_cache_enabled(before->cache);
  });
}

char* rg_rng_get(int device, at::Tensor** out) {
  return rg::guarded([&] {
    auto generator = at::globalContext().defaultGenerator(device_of(device));
    const std::lock_guard<std::mutex> lock(generator.mutex());
    *out = new at::Tensor(generator.get_state());
  });
}

char* rg_rng_set(int device, const at::Tensor* state) {
  return rg::guarded([&] {
    auto generator = at::globalContext().defaultGenerator(device_of(device));
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(*state);
  });
}

char* rg_seed(uint64_t seed) {
  return rg::guarded([&] { at::manual_seed(seed); });
}

char* rg_deterministic(bool on) {
  return rg::guarded([&] {
    auto& context = at::globalContext();
    context.setDeterministicAlgorithms(on, /*warn_only=*/false);
    context.setDeterministicCuDNN(on);
    if (on) context.setBenchmarkCuDNN(false);
  });
}

bool rg_is_deterministic() { return at::globalContext().deterministicAlgorithms(); }

char* rg_flush_denormals(bool on, bool* done) {
  return rg::guarded([&] { *done = at::globalContext().setFlushDenormal(on); });
}

char* rg_allow_tf32(bool on) {
  return rg::guarded([&] {
    at::globalContext().setAllowTF32CuBLAS(on);
    at::globalContext().setAllowTF32CuDNN(on);
  });
}

char* rg_channels_last(const at::Tensor* tensor, at::Tensor** out) {
  return rg::guarded([&] { *out = new at::Tensor(tensor->contiguous(channels_last_of(*tensor))); });
}

char* rg_is_channels_last(const at::Tensor* tensor, bool* out) {
  return rg::guarded([&] { *out = tensor->is_contiguous(channels_last_of(*tensor)); });
}

char* rg_dense_cpu(const at::Tensor* tensor, bool* out) {
  return rg::guarded([&] { *out = tensor->device().is_cpu() && tensor->is_contiguous() && !tensor->is_neg() && !tensor->is_conj(); });
}

char* rg_foreign(void* memory, const int64_t* sizes, size_t dims, int kind, int device, void* data, rg_drop drop,
                 at::Tensor** out) {
  rg::Owned owned(data, drop);
  return rg::guarded([&] {
    auto shared = std::make_shared<rg::Owned>(owned.release(), drop);
    const auto where = device_of(device);
    const auto options = at::TensorOptions().dtype(static_cast<at::ScalarType>(kind)).device(where);
    *out = new at::Tensor(
        at::from_blob(memory, at::IntArrayRef(sizes, dims), [shared](void*) mutable { shared.reset(); }, options, where));
  });
}
