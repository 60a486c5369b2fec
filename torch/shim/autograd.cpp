// Gradient hooks, the end of a backward pass, and gradients that live in memory of the caller's choosing.
#include "guard.h"
#include "shim.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

namespace {

// A callback's failure on its way through the engine to rg_backward, where the Rust value is handed back as it was.
class CallbackError : public std::runtime_error {
 public:
  explicit CallbackError(const rg_failure& failure)
      : std::runtime_error(std::string(failure.message, failure.length)),
        held_(std::make_shared<rg::Owned>(failure.payload, failure.drop)) {}
  void* take() const { return held_->release(); }

 private:
  std::shared_ptr<rg::Owned> held_;  // exceptions are copied, the value is not
};

class Callback {
 public:
  Callback(void* data, rg_call call, rg_drop drop) : data_(data, drop), call_(call) {}
  void operator()() const {
    rg_failure failure{};
    if (!call_(data_.get(), &failure)) throw CallbackError(failure);
  }

 private:
  rg::Owned data_;
  rg_call call_;
};

class ReadyHook final : public torch::autograd::FunctionPostHook {
 public:
  explicit ReadyHook(std::shared_ptr<Callback> callback) : callback_(std::move(callback)) {}
  torch::autograd::variable_list operator()(const torch::autograd::variable_list& outputs,
                                            const torch::autograd::variable_list&) override {
    (*callback_)();
    return outputs;
  }

 private:
  std::shared_ptr<Callback> callback_;
};

}  // namespace

struct rg_hook {
  // A tensor holds its accumulator weakly; the hook keeps it alive.
  std::shared_ptr<torch::autograd::Node> accumulator;
  std::shared_ptr<Callback> callback;
  uintptr_t key;
};

void rg_free(char* message) { std::free(message); }

char* rg_hook_add(const at::Tensor* leaf, void* data, rg_call call, rg_drop drop, rg_hook** out) {
  rg::Owned owned(data, drop);
  return rg::guarded([&] {
    auto callback = std::make_shared<Callback>(owned.release(), call, drop);
    TORCH_CHECK(leaf->defined() && leaf->requires_grad() && leaf->is_leaf(),
                "the tensor must be a leaf that requires a gradient");
    auto accumulator = torch::autograd::impl::grad_accumulator(*leaf);
    auto key = accumulator->add_post_hook(std::make_unique<ReadyHook>(callback));
    *out = new rg_hook{std::move(accumulator), std::move(callback), key};
  });
}

void rg_hook_unlink(rg_hook* hook) { hook->accumulator->del_post_hook(hook->key); }

void rg_hook_delete(rg_hook* hook) { delete hook; }

char* rg_backward(const at::Tensor* loss, const at::Tensor* gradient, bool keep_graph, rg_failure* failure) {
  return rg::guarded([&] {
    try {
      torch::autograd::backward({*loss}, {gradient != nullptr ? *gradient : at::Tensor()}, keep_graph);
    } catch (const CallbackError& error) {
      failure->payload = error.take();
      throw;
    }
  });
}

char* rg_on_backward_end(void* data, rg_call call, rg_drop drop) {
  rg::Owned owned(data, drop);
  return rg::guarded([&] {
    auto callback = std::make_shared<Callback>(owned.release(), call, drop);
    torch::autograd::Engine::get_default_engine().queue_callback([callback] { (*callback)(); });
  });
}

char* rg_set_grad(const at::Tensor* leaf, const at::Tensor* gradient) {
  return rg::guarded([&] { leaf->mutable_grad() = gradient != nullptr ? *gradient : at::Tensor(); });
}

bool rg_same_layout(const at::Tensor* a, const at::Tensor* b) {
  return a->sizes() == b->sizes() && a->strides() == b->strides();
}

const void* rg_identity(const at::Tensor* tensor) { return tensor->unsafeGetTensorImpl(); }
