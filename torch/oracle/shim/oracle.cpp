// c10d::Reducer, which is what PyTorch's DistributedDataParallel is made of, between threads of one process: the group's all-reduce
// and broadcast meet at a barrier. Results are null or a message from malloc.
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <condition_variable>
#include <cstring>
#include <mutex>
#include <vector>

namespace {

// Where the ranks' tensors meet. Each call is combined by the last to come, in rank order.
class Hub {
 public:
  explicit Hub(int size) : tensors_(static_cast<size_t>(size)) {}

  void meet(int rank, const at::Tensor& mine, const std::function<void(std::vector<at::Tensor>&)>& combine) {
    std::unique_lock<std::mutex> lock(mutex_);
    tensors_[static_cast<size_t>(rank)] = mine;
    const auto round = round_;
    if (++arrived_ == tensors_.size()) {
      combine(tensors_);
      arrived_ = 0;
      ++round_;
      changed_.notify_all();
      return;
    }
    const bool all = changed_.wait_for(lock, std::chrono::seconds(60), [&] { return round_ != round; });
    TORCH_CHECK(all, "rank ", rank, " waited for the others in vain");
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<at::Tensor> tensors_;
  size_t arrived_ = 0;
  uint64_t round_ = 0;
};

class Done : public c10d::Work {
 public:
  explicit Done(std::vector<at::Tensor> tensors) : tensors_(std::move(tensors)) {}
  bool wait(std::chrono::milliseconds) override { return true; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override {
    auto future = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
    future->markCompleted(c10::IValue(tensors_));
    return future;
  }

 private:
  std::vector<at::Tensor> tensors_;
};

class Threads : public c10d::Backend {
 public:
  Threads(Hub* hub, int rank, int size) : Backend(rank, size), hub_(hub) {}
  const std::string getBackendName() const override { return "threads"; }

  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors, const c10d::AllreduceOptions&) override {
    hub_->meet(getRank(), tensors[0], [](std::vector<at::Tensor>& all) {
      const at::NoGradGuard no_grad;
      auto sum = all[0].clone();
      for (size_t i = 1; i < all.size(); ++i) sum.add_(all[i]);
      for (auto& each : all) each.copy_(sum);
    });
    return c10::make_intrusive<Done>(tensors);
  }

  c10::intrusive_ptr<c10d::Work> broadcast(std::vector<at::Tensor>& tensors, const c10d::BroadcastOptions& options) override {
    const auto root = static_cast<size_t>(options.rootRank);
    hub_->meet(getRank(), tensors[0], [root](std::vector<at::Tensor>& all) {
      const at::NoGradGuard no_grad;
      for (auto& each : all) each.copy_(all[root]);
    });
    return c10::make_intrusive<Done>(tensors);
  }

 private:
  Hub* hub_;
};

template <typename F>
char* guarded(F&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    return strdup(error.what());
  }
}

}  // namespace

extern "C" {

struct oracle_settings {
  int rank;
  int size;
  int64_t first_bucket;
  int64_t bucket;
  bool find_unused;
};

void* oracle_hub_new(int size) { return new Hub(size); }
void oracle_hub_delete(void* hub) { delete static_cast<Hub*>(hub); }

char* oracle_new(void* hub, const oracle_settings* how, at::Tensor* const* params, size_t count, void** out) {
  return guarded([&] {
    auto group = c10::make_intrusive<c10d::ProcessGroup>(c10::make_intrusive<c10d::HashStore>(), how->rank, how->size);
    const auto kind = c10d::ProcessGroup::BackendType::CUSTOM;
    group->setBackend(c10::DeviceType::CPU, kind, c10::make_intrusive<Threads>(static_cast<Hub*>(hub), how->rank, how->size));
    group->setDefaultBackend(kind);
    std::vector<at::Tensor> tensors;
    std::unordered_map<size_t, std::string> names;
    for (size_t i = 0; i < count; ++i) {
      tensors.push_back(*params[i]);
      names[i] = std::to_string(i);
    }
    // As torch.nn.parallel does: buckets in the reverse order of definition.
    const std::vector<size_t> limits{static_cast<size_t>(how->first_bucket), static_cast<size_t>(how->bucket)};
    auto [buckets, sizes] = c10d::compute_bucket_assignment_by_size(tensors, limits, std::vector<bool>(count, false));
    std::reverse(buckets.begin(), buckets.end());
    *out = new c10d::Reducer(tensors, buckets, group, std::vector<bool>(count, false), how->bucket, how->find_unused,
                             /*gradient_as_bucket_view=*/true, names, how->first_bucket,
                             /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false, {});
  });
}

void oracle_delete(void* reducer) { delete static_cast<c10d::Reducer*>(reducer); }

// As DistributedDataParallel's forward: before the model runs, and with what came out of it.
char* oracle_before(void* reducer) {
  return guarded([&] {
    auto* r = static_cast<c10d::Reducer*>(reducer);
    r->prepare_for_forward();
    r->rebuild_buckets();
  });
}

char* oracle_after(void* reducer, const at::Tensor* output, bool find_unused) {
  return guarded([&] {
    std::vector<at::Tensor> outputs;
    if (find_unused) outputs.push_back(*output);
    static_cast<c10d::Reducer*>(reducer)->prepare_for_backward(outputs);
  });
}

void oracle_free(char* message) { std::free(message); }
}
