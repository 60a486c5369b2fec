// The C interface between Rust (src/sys.rs) and libtorch, for what the `tch` crate leaves out.
//
// Conventions, the same for every function:
// - The result is null on success, else a message from malloc that the caller gives back to rg_free. Nothing throws.
// - Tensors are `at::Tensor*` as `tch` holds them; those written to an `out` belong to the caller.
// - A `void* data` with a `drop` is a Rust value: it is owned from the call on, whatever the outcome, and dropped once.
#pragma once
#include <ATen/core/Tensor.h>
#include <cstddef>
#include <cstdint>

extern "C" {

// What a callback leaves behind when it fails: a Rust value, and its text, which lives as long as the value.
struct rg_failure {
  void* payload;
  void (*drop)(void*);
  const char* message;
  size_t length;
};
using rg_drop = void (*)(void* data);
// Answers true on success; on failure it has filled in `failure`.
using rg_call = bool (*)(void* data, rg_failure* failure);

void rg_free(char* message);

// autograd.cpp
struct rg_hook;
char* rg_hook_add(const at::Tensor* leaf, void* data, rg_call call, rg_drop drop, rg_hook** out);
// Takes the hook out of libtorch's list, without running any of Rust's code; call it between backward passes.
void rg_hook_unlink(rg_hook* hook);
// Drops the closure, after rg_hook_unlink.
void rg_hook_delete(rg_hook* hook);
char* rg_backward(const at::Tensor* loss, const at::Tensor* gradient, bool keep_graph, rg_failure* failure);
char* rg_on_backward_end(void* data, rg_call call, rg_drop drop);
char* rg_set_grad(const at::Tensor* leaf, const at::Tensor* gradient);
bool rg_same_layout(const at::Tensor* a, const at::Tensor* b);
const void* rg_identity(const at::Tensor* tensor);

// ddp.cpp
// Takes the gradients away: the next backward pass makes new ones.
char* rg_grads_release(const at::Tensor* const* params, size_t count);
// Copies a parameter's gradient, if it has one, into `view`, which becomes its gradient. The view must have its layout.
// Where `is_finite` is given, also says whether all of it is finite, at no further pass over memory.
char* rg_grad_into(const at::Tensor* param, const at::Tensor* view, bool* had, bool* is_finite);
// Queues a copy between a device and pinned memory in the current stream; both must live until it is done.
char* rg_copy_async(const at::Tensor* to, const at::Tensor* from);
char* rg_all_finite(const at::Tensor* tensor, bool* out);

// optim.cpp
struct rg_optim;
struct rg_rule {
  int kind;  // 0 SGD, 1 Adam, 2 AdamW
  bool nesterov;
  bool amsgrad;
  double lr;
  double weight_decay;
  double momentum;
  double beta1;
  double beta2;
  double eps;
};
char* rg_optim_new(rg_optim** out);
void rg_optim_delete(rg_optim* optim);
char* rg_optim_add(rg_optim* optim, const rg_rule* rule, const at::Tensor* const* params, size_t count);
char* rg_optim_set_lr(rg_optim* optim, size_t bucket, double lr);
char* rg_optim_zero_grad(rg_optim* optim, bool release);
char* rg_optim_check(rg_optim* optim, const at::Tensor* inverse_scale);
// As rg_optim_check without a scale, unless the gradients at hand were checked already.
char* rg_optim_guard(rg_optim* optim);
bool rg_optim_is_checked(const rg_optim* optim);
char* rg_optim_found_inf(rg_optim* optim, at::Tensor** out);
char* rg_optim_clip(rg_optim* optim, double max_norm, at::Tensor** norm);
char* rg_optim_step(rg_optim* optim);
char* rg_optim_skipped(rg_optim* optim, double* out);
char* rg_optim_set_skipped(rg_optim* optim, double skipped);
// `slot`: 0 step, 1 first moment or momentum, 2 second moment, 3 its maximum. Null where the rule has no such state.
char* rg_optim_state(rg_optim* optim, size_t bucket, size_t index, int slot, at::Tensor** out);
char* rg_scale_update(at::Tensor* scale, at::Tensor* growth_tracker, const at::Tensor* found_inf, double growth,
                      double backoff, int64_t interval);

// context.cpp
struct rg_autocast {
  int device_type;
  bool enabled;
  int kind;
  bool cache;
};
char* rg_autocast_enter(const rg_autocast* wanted, rg_autocast* before);
char* rg_autocast_leave(const rg_autocast* before);
char* rg_rng_get(int device, at::Tensor** out);
char* rg_rng_set(int device, const at::Tensor* state);
char* rg_seed(uint64_t seed);
char* rg_deterministic(bool on);
bool rg_is_deterministic();
char* rg_flush_denormals(bool on, bool* done);
char* rg_allow_tf32(bool on);
char* rg_channels_last(const at::Tensor* tensor, at::Tensor** out);
char* rg_is_channels_last(const at::Tensor* tensor, bool* out);
char* rg_dense_cpu(const at::Tensor* tensor, bool* out);
char* rg_foreign(void* memory, const int64_t* sizes, size_t dims, int kind, int device, void* data, rg_drop drop,
                 at::Tensor** out);

// cuda.cpp. A device is an index; a stream is libtorch's (id, device).
struct rg_stream {
  int64_t id;
  int device;
};
struct rg_event;
struct rg_graph;
char* rg_cuda_load(int* devices);
char* rg_stream_current(int device, rg_stream* out);
char* rg_stream_from_pool(int device, bool high_priority, rg_stream* out);
// Makes the stream and its device current on this thread.
char* rg_stream_enter(rg_stream stream, rg_stream* before, int* device_before);
char* rg_stream_leave(rg_stream before, int device_before);
char* rg_stream_handle(rg_stream stream, void** out);
char* rg_stream_query(rg_stream stream, bool* out);
char* rg_record_on_stream(const at::Tensor* tensor, rg_stream stream);
char* rg_event_new(bool timing, rg_event** out);
void rg_event_delete(rg_event* event);
char* rg_event_record(rg_event* event, rg_stream stream);
char* rg_event_block(rg_event* event, rg_stream stream);
char* rg_event_query(rg_event* event, bool* out);
char* rg_event_elapsed(rg_event* start, rg_event* end, double* milliseconds);
char* rg_graph_new(rg_graph** out);
void rg_graph_delete(rg_graph* graph);
char* rg_graph_begin(rg_graph* graph);
char* rg_graph_end(rg_graph* graph);
char* rg_graph_replay(rg_graph* graph);
}
