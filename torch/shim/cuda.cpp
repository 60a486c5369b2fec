// CUDA without CUDA's headers: libtorch_cuda is loaded when it lies beside libtorch, streams and events go through
// libtorch's device-generic guard, and graphs through symbols looked up by name, so that one build serves both kinds of machine.
#include "guard.h"
#include "shim.h"

#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <dlfcn.h>

#include <memory>
#include <string>
#include <utility>

namespace {

struct Library {
  void* handle = nullptr;
  std::string why;  // it is not there

  Library() {
    Dl_info info{};
    std::string folder;
    if (dladdr(reinterpret_cast<void*>(&at::globalContext), &info) != 0 && info.dli_fname != nullptr) {
      const std::string path = info.dli_fname;
      const auto slash = path.rfind('/');
      if (slash != std::string::npos) folder = path.substr(0, slash + 1);
    }
    handle = dlopen((folder + "libtorch_cuda.so").c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (handle == nullptr) why = dlerror();
  }
};

const Library& library() {
  static const Library loaded;
  return loaded;
}

void* symbol(const char* name) {
  void* found = library().handle != nullptr ? dlsym(library().handle, name) : nullptr;
  TORCH_CHECK(found != nullptr, "libtorch_cuda has no symbol ", name, "; this build expects the libtorch of its version");
  return found;
}

c10::Device device_of(int device) { return c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(device)); }
c10::impl::VirtualGuardImpl cuda() { return c10::impl::VirtualGuardImpl(c10::kCUDA); }
c10::Stream stream_of(rg_stream stream) {
  return c10::Stream(c10::Stream::UNSAFE, device_of(stream.device), stream.id);
}
rg_stream plain(const c10::Stream& stream) { return {stream.id(), stream.device_index()}; }

// at::cuda::CUDAGraph's members by name. `this` is the first argument in the Itanium C++ ABI.
struct GraphCalls {
  void (*construct)(void*, bool);
  void (*destroy)(void*);
  void (*begin)(void*, std::pair<unsigned long long, unsigned long long>, int);
  void (*end)(void*);
  void (*replay)(void*);

  GraphCalls()
      : construct(reinterpret_cast<decltype(construct)>(symbol("_ZN2at4cuda9CUDAGraphC1Eb"))),
        destroy(reinterpret_cast<decltype(destroy)>(symbol("_ZN2at4cuda9CUDAGraphD1Ev"))),
        begin(reinterpret_cast<decltype(begin)>(symbol("_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode"))),
        end(reinterpret_cast<decltype(end)>(symbol("_ZN2at4cuda9CUDAGraph11capture_endEv"))),
        replay(reinterpret_cast<decltype(replay)>(symbol("_ZN2at4cuda9CUDAGraph6replayEv"))) {}
};

const GraphCalls& graph_calls() {
  static const GraphCalls calls;
  return calls;
}

}  // namespace

struct rg_event {
  c10::Event event;
};

// The object's size is libtorch_cuda's secret (about 150 bytes in 2.11); the room is generous on purpose.
struct alignas(64) rg_graph {
  unsigned char room[2048];
};

char* rg_cuda_load(int* devices) {
  return rg::guarded([&] {
    TORCH_CHECK(library().handle != nullptr, "libtorch_cuda cannot be loaded: ", library().why);
    TORCH_CHECK(at::hasCUDA(), "libtorch_cuda was loaded after libtorch had already looked for it: call "
                               "regatta_torch::cuda::load() first thing in main");
    *devices = static_cast<int>(at::detail::getCUDAHooks().deviceCount());
    TORCH_CHECK(*devices > 0, "libtorch_cuda is loaded, but no CUDA device is visible");
    at::globalContext().lazyInitDevice(c10::kCUDA);
  });
}

char* rg_stream_current(int device, rg_stream* out) {
  return rg::guarded([&] { *out = plain(cuda().getStream(device_of(device))); });
}

char* rg_stream_from_pool(int device, bool high_priority, rg_stream* out) {
  return rg::guarded([&] { *out = plain(cuda().getStreamFromGlobalPool(device_of(device), high_priority)); });
}

char* rg_stream_enter(rg_stream stream, rg_stream* before, int* device_before) {
  return rg::guarded([&] {
    *device_before = cuda().exchangeDevice(device_of(stream.device)).index();
    *before = plain(cuda().exchangeStream(stream_of(stream)));
  });
}

char* rg_stream_leave(rg_stream before, int device_before) {
  return rg::guarded([&] {
    cuda().exchangeStream(stream_of(before));
    cuda().setDevice(device_of(device_before));
  });
}

char* rg_stream_handle(rg_stream stream, void** out) {
  return rg::guarded([&] { *out = stream_of(stream).native_handle(); });
}

char* rg_stream_query(rg_stream stream, bool* out) {
  return rg::guarded([&] { *out = stream_of(stream).query(); });
}

char* rg_record_on_stream(const at::Tensor* tensor, rg_stream stream) {
  return rg::guarded([&] { tensor->record_stream(stream_of(stream)); });
}

char* rg_event_new(bool timing, rg_event** out) {
  return rg::guarded([&] {
    const auto flag = timing ? c10::EventFlag::BACKEND_DEFAULT : c10::EventFlag::PYTORCH_DEFAULT;
    *out = new rg_event{c10::Event(c10::kCUDA, flag)};
  });
}

void rg_event_delete(rg_event* event) { delete event; }

char* rg_event_record(rg_event* event, rg_stream stream) {
  return rg::guarded([&] { event->event.record(stream_of(stream)); });
}

char* rg_event_block(rg_event* event, rg_stream stream) {
  return rg::guarded([&] { event->event.block(stream_of(stream)); });
}

char* rg_event_query(rg_event* event, bool* out) {
  return rg::guarded([&] { *out = event->event.query(); });
}

char* rg_event_elapsed(rg_event* start, rg_event* end, double* milliseconds) {
  return rg::guarded([&] { *milliseconds = start->event.elapsedTime(end->event); });
}

char* rg_graph_new(rg_graph** out) {
  return rg::guarded([&] {
    const auto& calls = graph_calls();
    auto room = std::make_unique<rg_graph>();
    calls.construct(room.get(), false);
    *out = room.release();
  });
}

void rg_graph_delete(rg_graph* graph) {
  // The destructor only warns about CUDA's own failures; what it throws all the same must not leave.
  char* message = rg::guarded([&] { graph_calls().destroy(graph); });
  rg_free(message);
  delete graph;
}

char* rg_graph_begin(rg_graph* graph) {
  // Mode 1 is cudaStreamCaptureModeThreadLocal: other threads (loaders, NCCL's watchdog) may go on using CUDA.
  return rg::guarded([&] { graph_calls().begin(graph, {0, 0}, 1); });
}

char* rg_graph_end(rg_graph* graph) {
  return rg::guarded([&] { graph_calls().end(graph); });
}

char* rg_graph_replay(rg_graph* graph) {
  return rg::guarded([&] { graph_calls().replay(graph); });
}
