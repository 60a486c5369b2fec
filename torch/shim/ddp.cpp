// Gradients in and out of buckets: one call a parameter, and one pass over memory to see that all is finite.
#include "guard.h"
#include "shim.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/isfinite.h>

#include <cstring>

namespace {

// Whether no exponent is all ones. Adding one to the exponent then carries into the sign bit, which was cleared.
template <typename Bits, Bits kOne>
bool finite(const void* data, size_t count) {
  constexpr size_t kBlock = 1024;  // of a known length, so that it is vectorised
  constexpr Bits kSign = Bits(1) << (sizeof(Bits) * 8 - 1);
  constexpr Bits kRest = static_cast<Bits>(~kSign);
  const auto* at = static_cast<const Bits*>(data);
  size_t done = 0;
  for (; done + kBlock <= count; done += kBlock) {
    Bits seen = 0;
    for (size_t i = 0; i < kBlock; ++i) seen |= static_cast<Bits>((at[done + i] & kRest) + kOne);
    if ((seen & kSign) != 0) return false;
  }
  Bits seen = 0;
  for (; done < count; ++done) seen |= static_cast<Bits>((at[done] & kRest) + kOne);
  return (seen & kSign) == 0;
}

}  // namespace

char* rg_grads_release(const at::Tensor* const* params, size_t count) {
  return rg::guarded([&] {
    for (size_t i = 0; i < count; ++i) params[i]->mutable_grad().reset();
  });
}

char* rg_grad_into(const at::Tensor* param, const at::Tensor* view, bool* had) {
  return rg::guarded([&] {
    const at::NoGradGuard no_grad;
    at::Tensor& grad = param->mutable_grad();
    *had = grad.defined();
    if (!*had) return;
    if (!grad.is_same(*view)) {
      view->copy_(grad);
      grad = *view;
    }
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
    const bool plain = tensor->device().is_cpu() && tensor->layout() == at::kStrided && tensor->is_non_overlapping_and_dense();
    const auto count = static_cast<size_t>(tensor->numel());
    if (plain && tensor->scalar_type() == at::kFloat) {
      *out = finite<uint32_t, 0x00800000u>(tensor->const_data_ptr(), count);
    } else if (plain && tensor->scalar_type() == at::kDouble) {
      *out = finite<uint64_t, 0x0010000000000000u>(tensor->const_data_ptr(), count);
    } else if (plain && tensor->scalar_type() == at::kHalf) {
      *out = finite<uint16_t, 0x0400u>(tensor->const_data_ptr(), count);
    } else if (plain && tensor->scalar_type() == at::kBFloat16) {
      *out = finite<uint16_t, 0x0080u>(tensor->const_data_ptr(), count);
    } else {
      *out = at::isfinite(*tensor).all().item().toBool();
    }
  });
}
