// Optimisers on libtorch's fused kernels. A bucket holds tensors of one dtype on one device under one rule, with their
// state ready in lists, so that a step is one call from Rust and one kernel call a bucket.
#include "guard.h"
#include "shim.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_amp_foreach_non_finite_check_and_unscale.h>
#include <ATen/ops/_amp_update_scale.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_foreach_zero.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <optional>
#include <vector>

namespace {

using Tensors = std::vector<at::Tensor>;
enum Slot { kStep = 0, kFirst = 1, kSecond = 2, kMaximum = 3 };

struct Lists {
  Tensors params, grads, first, second, maximum, steps;
};

bool same_layout(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() && a.strides() == b.strides() && a.scalar_type() == b.scalar_type();
}

// The CPU kernels walk raw memory in step: parameter, gradient and moments must lie alike.
at::Tensor laid_out_like(const at::Tensor& tensor, const at::Tensor& param) {
  return same_layout(tensor, param) ? tensor : at::empty_like(param).copy_(tensor);
}

struct Bucket {
  rg_rule rule;
  Lists all;
  at::Tensor step_counts;  // all.steps are its elements
  at::Tensor lr;           // in the device's memory, so that a captured graph sees changes; undefined on a CPU
  c10::Device device = c10::Device(c10::kCPU);

  Bucket(const rg_rule& rule_, const at::Tensor* const* params, size_t count) : rule(rule_) {
    const bool adaptive = rule.kind != 0;
    device = params[0]->device();
    const auto f32 = at::TensorOptions().dtype(at::kFloat).device(device);
    if (adaptive) step_counts = at::zeros({static_cast<int64_t>(count)}, f32);
    if (!device.is_cpu()) lr = at::full({}, rule.lr, f32);
    for (size_t i = 0; i < count; ++i) {
      // A tensor of the same memory without autograd's bookkeeping would lose track of set_data: keep the tensor itself.
      const at::Tensor& param = *params[i];
      all.params.push_back(param);
      if (adaptive) {
        all.steps.push_back(step_counts.select(0, static_cast<int64_t>(i)));
        all.first.push_back(at::zeros_like(param));
        all.second.push_back(at::zeros_like(param));
        if (rule.amsgrad) all.maximum.push_back(at::zeros_like(param));
      } else if (rule.momentum != 0.0) {
        all.first.push_back(at::zeros_like(param));
      }
    }
  }

  void follow_layout(size_t i) {
    const at::Tensor& param = all.params[i];
    TORCH_CHECK(param.device() == device && (all.first.empty() || all.first[i].scalar_type() == param.scalar_type()),
                "parameter ", i, " of its bucket changed its device or dtype after the first step (now ", param.device(), " ",
                param.scalar_type(), "): make a new optimiser after moving a model");
    for (Tensors* moments : {&all.first, &all.second, &all.maximum}) {
      if (!moments->empty()) (*moments)[i] = laid_out_like((*moments)[i], param);
    }
  }

  Tensors gradients() const {
    Tensors found;
    found.reserve(all.params.size());
    for (const auto& param : all.params) {
      if (param.grad().defined()) found.push_back(param.grad());
    }
    return found;
  }

  void run(const Lists& lists, const std::optional<at::Tensor>& found_inf) {
    const auto run_with = [&](const auto& rate) {
      switch (rule.kind) {
        case 0:
          // Momentum starts at zero, which makes the first step momentum * 0 + gradient: no special first step.
          at::_fused_sgd_(lists.params, lists.grads, lists.first, rule.weight_decay, rule.momentum, rate, 0.0,
                          rule.nesterov, false, false, std::nullopt, found_inf);
          break;
        case 1:
          at::_fused_adam_(lists.params, lists.grads, lists.first, lists.second, lists.maximum, lists.steps, rate,
                           rule.beta1, rule.beta2, rule.weight_decay, rule.eps, rule.amsgrad, false, std::nullopt,
                           found_inf);
          break;
        default:
          at::_fused_adamw_(lists.params, lists.grads, lists.first, lists.second, lists.maximum, lists.steps, rate,
                            rule.beta1, rule.beta2, rule.weight_decay, rule.eps, rule.amsgrad, false, std::nullopt,
                            found_inf);
      }
    };
    if (lr.defined()) {
      run_with(lr);
    } else {
      run_with(rule.lr);
    }
  }

  void step(const std::optional<at::Tensor>& found_inf) {
    const size_t count = all.params.size();
    all.grads.clear();
    for (size_t i = 0; i < count; ++i) {
      follow_layout(i);
      const at::Tensor& grad = all.params[i].grad();
      if (grad.defined()) all.grads.push_back(laid_out_like(grad, all.params[i]));
    }
    if (all.grads.empty()) return;
    if (all.grads.size() == count) {
      if (step_counts.defined()) step_counts.add_(1);
      run(all, found_inf);
      if (found_inf && step_counts.defined()) step_counts.sub_(*found_inf);
    } else {
      step_some(found_inf);
    }
    all.grads.clear();
  }

  // Parameters without a gradient are left alone, and so are their step counts.
  void step_some(const std::optional<at::Tensor>& found_inf) {
    Lists some;
    some.grads = std::move(all.grads);
    for (size_t i = 0; i < all.params.size(); ++i) {
      if (!all.params[i].grad().defined()) continue;
      some.params.push_back(all.params[i]);
      if (!all.first.empty()) some.first.push_back(all.first[i]);
      if (!all.second.empty()) some.second.push_back(all.second[i]);
      if (!all.maximum.empty()) some.maximum.push_back(all.maximum[i]);
      if (!all.steps.empty()) some.steps.push_back(all.steps[i].add_(1));
    }
    run(some, found_inf);
    if (found_inf) {
      for (auto& count : some.steps) count.sub_(*found_inf);
    }
  }
};

}  // namespace

struct rg_optim {
  std::vector<Bucket> buckets;
  at::Tensor found_inf, one, skipped;
  bool checked = false;  // found_inf speaks of the gradients at hand

  void prepare() {
    if (found_inf.defined()) return;
    const auto f32 = at::TensorOptions().dtype(at::kFloat).device(home());
    found_inf = at::zeros({}, f32);
    one = at::ones({}, f32);
    skipped = at::zeros({}, f32.dtype(at::kDouble));
  }
  c10::Device home() const { return buckets.empty() ? c10::Device(c10::kCPU) : buckets[0].device; }

  void check(const at::Tensor* inverse_scale) {
    prepare();
    found_inf.zero_();
    for (const auto& bucket : buckets) {
      const auto grads = bucket.gradients();
      if (grads.empty()) continue;
      at::Tensor found = bucket.device == home() ? found_inf : at::zeros({}, found_inf.options().device(bucket.device));
      const at::Tensor& scale = inverse_scale != nullptr ? *inverse_scale : one;
      at::_amp_foreach_non_finite_check_and_unscale_(grads, found, scale.to(bucket.device, /*non_blocking=*/true));
      if (bucket.device != home()) found_inf.add_(found.to(home(), true)).clamp_max_(1);
    }
    checked = true;
  }
};

char* rg_optim_new(rg_optim** out) {
  return rg::guarded([&] { *out = new rg_optim(); });
}

void rg_optim_delete(rg_optim* optim) { delete optim; }

char* rg_optim_add(rg_optim* optim, const rg_rule* rule, const at::Tensor* const* params, size_t count) {
  return rg::guarded([&] {
    const at::NoGradGuard no_grad;
    optim->buckets.emplace_back(*rule, params, count);
  });
}

char* rg_optim_set_lr(rg_optim* optim, size_t bucket, double lr) {
  return rg::guarded([&] {
    const at::NoGradGuard no_grad;
    auto& target = optim->buckets.at(bucket);
    if (target.rule.lr != lr && target.lr.defined()) target.lr.fill_(lr);
    target.rule.lr = lr;
  });
}

char* rg_optim_zero_grad(rg_optim* optim, bool release) {
  return rg::guarded([&] {
    const at::NoGradGuard no_grad;
    Tensors shared;
    for (auto& bucket : optim->buckets) {
      shared.clear();
      for (const auto& param : bucket.all.params) {
        at::Tensor& grad = param.mutable_grad();
        if (!grad.defined()) continue;
        // Only its parameter holds it and the memory is libtorch's own: nobody can tell it from a new one.
        const bool alone = grad.use_count() == 1 && grad.has_storage() && grad.storage().use_count() == 1 &&
                           grad.storage().resizable();
        if (release && alone) {
          grad.reset();
        } else {
          shared.push_back(grad);
        }
      }
      if (!shared.empty()) at::_foreach_zero_(shared);
    }
    optim->checked = false;
  });
}

char* rg_optim_check(rg_optim* optim, const at::Tensor* inverse_scale) {
  return rg::guarded([&] {
    const at::NoGradGuard no_grad;
    optim->check(inverse_scale);
  });
}

char* rg_optim_guard(rg_optim* optim) {
  return rg::guarded([&] {
    const at::NoGradGuard no_grad;
    if (!optim->checked) optim->check(nullptr);
  });
}

bool rg_optim_is_checked(const rg_optim* optim) { return optim->checked; }

char* rg_optim_found_inf(rg_optim* optim, at::Tensor** out) {
  return rg::guarded([&] {
    optim->prepare();
    *out = new at::Tensor(optim->found_inf);
  });
}

char* rg_optim_clip(rg_optim* optim, double max_norm, at::Tensor** norm) {
  return rg::guarded([&] {
    const at::NoGradGuard no_grad;
    const auto home = optim->home();
    Tensors norms;
    std::vector<Tensors> grads;
    for (const auto& bucket : optim->buckets) {
      grads.push_back(bucket.gradients());
      if (grads.back().empty()) continue;
      for (auto& each : at::_foreach_norm(grads.back(), 2.0)) norms.push_back(each.to(home, at::kFloat, true));
    }
    const auto total = norms.empty() ? at::zeros({}, at::TensorOptions().dtype(at::kFloat).device(home))
                                     : at::linalg_vector_norm(at::stack(norms));
    const auto factor = total.add(1e-6).reciprocal_().mul_(max_norm).clamp_max_(1.0);
    // Reading the factor costs nothing on a CPU and saves a pass; on a device it would wait for the queue.
    const bool unchanged = home.is_cpu() && factor.item().toDouble() >= 1.0;
    for (size_t i = 0; !unchanged && i < grads.size(); ++i) {
      if (!grads[i].empty()) at::_foreach_mul_(grads[i], factor.to(optim->buckets[i].device, true));
    }
    *norm = new at::Tensor(total);
  });
}

char* rg_optim_step(rg_optim* optim) {
  return rg::guarded([&] {
    const at::NoGradGuard no_grad;
    for (auto& bucket : optim->buckets) {
      std::optional<at::Tensor> found;
      if (optim->checked) found = optim->found_inf.to(bucket.device, true);
      bucket.step(found);
    }
    if (optim->checked) optim->skipped.add_(optim->found_inf);
    optim->checked = false;
  });
}

char* rg_optim_skipped(rg_optim* optim, double* out) {
  return rg::guarded([&] { *out = optim->skipped.defined() ? optim->skipped.item().toDouble() : 0.0; });
}

char* rg_optim_set_skipped(rg_optim* optim, double skipped) {
  return rg::guarded([&] {
    const at::NoGradGuard no_grad;
    optim->prepare();
    optim->skipped.fill_(skipped);
  });
}

char* rg_optim_state(rg_optim* optim, size_t bucket, size_t index, int slot, at::Tensor** out) {
  return rg::guarded([&] {
    Lists& all = optim->buckets.at(bucket).all;
    const Tensors& list = slot == kStep ? all.steps : slot == kFirst ? all.first : slot == kSecond ? all.second : all.maximum;
    *out = list.empty() ? nullptr : new at::Tensor(list.at(index));
  });
}

char* rg_scale_update(at::Tensor* scale, at::Tensor* growth_tracker, const at::Tensor* found_inf, double growth,
                      double backoff, int64_t interval) {
  return rg::guarded([&] {
    const at::NoGradGuard no_grad;
    at::_amp_update_scale_(*scale, *growth_tracker, *found_inf, growth, backoff, interval);
  });
}
