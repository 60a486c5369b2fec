// Gradients in and out of buckets: one call a parameter, and one pass over memory to see that all is finite.
#include "guard.h"
#include "shim.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/isfinite.h>

#include <algorithm>
#include <cstring>
#include <optional>

namespace {

// Whether no exponent is all ones. Adding one to the exponent then carries into the sign bit, which was cleared. Copies what it
// looks at, block by block, where there is somewhere to copy it: memory is read once.
template <typename Bits, Bits kOne>
bool finite(const void* data, void* copy, size_t count) {
  constexpr size_t kBlock = 1024;  // of a known length, so that it is vectorised
  constexpr Bits kSign = Bits(1) << (sizeof(Bits) * 8 - 1);
  constexpr Bits kRest = static_cast<Bits>(~kSign);
  const auto* at = static_cast<const Bits*>(data);
  auto* to = static_cast<Bits*>(copy);
  Bits found = 0;
  for (size_t done = 0; done < count; done += kBlock) {
    const size_t length = std::min(kBlock, count - done);
    if (to != nullptr) std::memcpy(to + done, at + done, length * sizeof(Bits));
    Bits seen = 0;
    if (length == kBlock) {
      for (size_t i = 0; i < kBlock; ++i) seen |= static_cast<Bits>((at[done + i] & kRest) + kOne);
    } else {
      for (size_t i = 0; i < length; ++i) seen |= static_cast<Bits>((at[done + i] & kRest) + kOne);
    }
    found |= seen;
    if (to == nullptr && (found & kSign) != 0) return false;
  }
  return (found & kSign) == 0;
}

bool plain(const at::Tensor& tensor) {
  return tensor.device().is_cpu() && tensor.layout() == at::kStrided && tensor.is_non_overlapping_and_dense();
}

// The same by the tensor's type; nothing for those that it does not know.
std::optional<bool> finite(const at::Tensor& tensor, void* copy) {
  const void* data = tensor.const_data_ptr();
  const auto count = static_cast<size_t>(tensor.numel());
  switch (tensor.scalar_type()) {
    case at::kFloat: return finite<uint32_t, 0x00800000u>(data, copy, count);
    case at::kDouble: return finite<uint64_t, 0x0010000000000000u>(data, copy, count);
    case at::kHalf: return finite<uint16_t, 0x0400u>(data, copy, count);
    case at::kBFloat16: return finite<uint16_t, 0x0080u>(data, copy, count);
    default: return std::nullopt;
  }
}

bool all_finite(const at::Tensor& tensor) {
  if (plain(tensor)) {
    if (const auto known = finite(tensor, nullptr)) return *known;
  }
  return at::isfinite(tensor).all().item().toBool();
}

}  // namespace

char* rg_grads_release(const at::Tensor* const* params, size_t count) {
  return rg::guarded([&] {
    for (size_t i = 0; i < count; ++i) params[i]->mutable_grad().reset();
  });
}

char* rg_grad_into(const at::Tensor* param, const at::Tensor* view, bool* had, bool* is_finite) {
  return rg::guarded([&] {
    const at::NoGradGuard no_grad;
    at::Tensor& grad = param->mutable_grad();
    *had = grad.defined();
    if (!*had) return;
    std::optional<bool> known;
    if (!grad.is_same(*view)) {
      const bool alike = grad.scalar_type() == view->scalar_type() && grad.strides() == view->strides();
      if (is_finite != nullptr && alike && plain(grad) && plain(*view)) known = finite(grad, view->mutable_data_ptr());
      if (!known) view->copy_(grad);
      grad = *view;
    }
    if (is_finite != nullptr) *is_finite = known ? *known : all_finite(*view);
  });
}

char* rg_copy_async(const at::Tensor* to, const at::Tensor* from) {
  return rg::guarded([&] {
    const at::NoGradGuard no_grad;
    to->copy_(*from, /*non_blocking=*/true);
  });
}

char* rg_all_finite(const at::Tensor* tensor, bool* out) {
  return rg::guarded([&] {
    const at::NoGradGuard no_grad;
    *out = all_finite(*tensor);
  });
}
