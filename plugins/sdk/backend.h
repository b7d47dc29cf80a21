#pragma once
// What a backend author includes: plain C++ classes in, the C table out. plugins/null is the template; docs/adding-a-backend.md the way.
//
// A backend is a class with a name, two static functions and four nested classes:
//
//   struct MyBackend {
//     static constexpr const char* kName = "my";
//     class Event;       // Result<> wait();   blocks; the backend takes its event back in it, see Table::wait
//     class Buffer;      // Result<> write(uint64_t offset, const void* src, uint64_t bytes);
//                        // Result<> read(uint64_t offset, void* dst, uint64_t bytes);
//     class Executable;  // Result<Event*> submit(std::span<const fth_binding>, const int64_t* scalars);
//     class Device;      // Result<fth_device_info> info();
//                        // Result<std::unique_ptr<Buffer>> alloc(uint64_t bytes);
//                        // Result<std::unique_ptr<Buffer>> import_host(void* p, uint64_t bytes);
//                        // Result<fth_estimate> estimate(const SegmentView&);
//                        // Result<std::unique_ptr<Executable>> compile(const SegmentView&, std::span<const fth_binding> weights);
//     static Result<uint32_t> device_count(Host);
//     static Result<std::unique_ptr<Device>> open(Host, uint32_t index, Options&);
//   };
//   extern "C" const fth_backend* my_query(uint32_t major, const fth_host* host) { return fth::sdk::query<MyBackend>(major, host); }
//   FTH_EXPORT_BACKEND(my_query)   // in the plugin's own file, so that the same objects can be linked in as well
//
// The adapter keeps the rules of the boundary: exceptions end here, an out parameter is written only on success, struct_size is obeyed in both
// directions, segments are checked before the backend sees them, options that nobody took are refused.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/base/result.h"
#include "plugins/abi/fth_backend.h"
#include "plugins/sdk/segment.h"

// The project's version, as CMakeLists.txt has it; tests/base holds the two together.
#define FTH_SDK_VERSION "0.1.0"

#if defined(__clang__)
#define FTH_TEXT_(x) #x
#define FTH_TEXT(x) FTH_TEXT_(x)
#define FTH_BUILD_COMPILER "clang " FTH_TEXT(__clang_major__) "." FTH_TEXT(__clang_minor__) "." FTH_TEXT(__clang_patchlevel__)
#if __has_feature(address_sanitizer)
#define FTH_BUILD_ASAN " asan"
#endif
#if __has_feature(thread_sanitizer)
#define FTH_BUILD_TSAN " tsan"
#endif
#if __has_feature(memory_sanitizer)
#define FTH_BUILD_MSAN " msan"
#endif
#else
#define FTH_BUILD_COMPILER "g++ " __VERSION__
#if defined(__SANITIZE_ADDRESS__)
#define FTH_BUILD_ASAN " asan"
#endif
#if defined(__SANITIZE_THREAD__)
#define FTH_BUILD_TSAN " tsan"
#endif
#endif
#ifndef FTH_BUILD_ASAN
#define FTH_BUILD_ASAN ""
#endif
#ifndef FTH_BUILD_TSAN
#define FTH_BUILD_TSAN ""
#endif
#ifndef FTH_BUILD_MSAN
#define FTH_BUILD_MSAN ""
#endif
// "forethought 0.1.0, g++ 12.2.0 asan": of the translation unit that expands it.
#define FTH_BUILD_STRING "forethought " FTH_SDK_VERSION ", " FTH_BUILD_COMPILER FTH_BUILD_ASAN FTH_BUILD_TSAN FTH_BUILD_MSAN

#pragma GCC visibility push(hidden)
namespace fth::sdk {

// Copies a message into the caller's error, cut at a whole UTF-8 character.
inline void set_message(fth_error* err, std::string_view message) noexcept {
  if (err == nullptr) return;
  size_t n = std::min(message.size(), sizeof err->message - 1);
  if (n < message.size())
    while (n > 0 && (static_cast<unsigned char>(message[n]) & 0xc0u) == 0x80u) --n;
  std::memcpy(err->message, message.data(), n);
  err->message[n] = '\0';
}

// The one exception guard: f returns Result<>. Writes err only when the code is other than FTH_OK.
template <class F>
fth_code guard(fth_error* err, F&& f) noexcept {
  const auto say = [err](fth_code code, std::string_view message) {
    set_message(err, message);
    return code;
  };
  try {
    const Result<> r = f();
    return r ? FTH_OK : say(static_cast<fth_code>(r.error().code), r.error().message);
  } catch (const std::bad_alloc&) {
    return say(FTH_RESOURCE_EXHAUSTED, "out of memory");
  } catch (const std::exception& e) {
    return say(FTH_INTERNAL, e.what());
  } catch (...) {
    return say(FTH_INTERNAL, "unknown exception");
  }
}

// The host's services. A copyable reference: the fth_host lives as long as the process.
class Host {
 public:
  explicit Host(const fth_host* host) : host_(host) {}
  uint32_t n_threads() const { return host_->n_threads; }
  void log(int32_t level, const std::string& message) const { host_->log(host_->self, level, message.c_str()); }
  // f(uint32_t i) once for each i in [0, n), each thread in ascending order; returns when all are done. f must not throw (the process ends if it
  // does) and must not call parallel_for; it may wait for what smaller indices do.
  template <class F>
  void parallel_for(uint32_t n, F&& f) const {
    using Body = std::remove_reference_t<F>;
    const auto body = [](void* arg, uint32_t i) noexcept { (*static_cast<Body*>(arg))(i); };
    host_->parallel_for(host_->self, n, body, const_cast<void*>(static_cast<const void*>(std::addressof(f))));
  }

 private:
  const fth_host* host_;
};

// "key=value,key=value". A backend takes the keys that it knows; what is left when open returns is an error that names it.
class Options {
 public:
  static Result<Options> parse(const char* text) {
    Options options;
    std::string_view rest = text ? text : "";
    while (!rest.empty()) {
      const std::string_view item = rest.substr(0, rest.find(','));
      rest.remove_prefix(std::min(rest.size(), item.size() + 1));
      const size_t equals = item.find('=');
      if (equals == 0 || equals == std::string_view::npos)
        return fail(Code::invalid_argument, "option '" + std::string(item) + "': expected key=value");
      const std::string_view key = item.substr(0, equals);
      for (const auto& [known, value] : options.items_)
        if (known == key) return fail(Code::invalid_argument, "option '" + std::string(key) + "' is given twice");
      options.items_.emplace_back(key, item.substr(equals + 1));
    }
    return options;
  }

  // The value of `key`, once. Asking makes the key known, whether or not it was given.
  std::optional<std::string> take(std::string_view key) {
    known_ += (known_.empty() ? "" : ", ") + std::string(key);
    const auto it = std::find_if(items_.begin(), items_.end(), [&](const auto& item) { return item.first == key; });
    if (it == items_.end()) return std::nullopt;
    std::string value = std::move(it->second);
    items_.erase(it);
    return value;
  }
  Result<> check_all_taken() const {
    if (items_.empty()) return {};
    return fail(Code::invalid_argument,
                "option '" + items_.front().first + "' is not known; " + (known_.empty() ? "there are none" : "known: " + known_));
  }

 private:
  std::vector<std::pair<std::string, std::string>> items_;
  std::string known_;
};

// The backend's own buffer behind a binding; null where the binding is empty (an unused slot).
template <class Buffer>
Buffer* buffer_of(const fth_binding& b) {
  return reinterpret_cast<Buffer*>(b.buffer);
}

// [offset, offset + bytes) lies in a buffer of `size` bytes. out_of_range with the numbers.
inline Result<> check_range(uint64_t offset, uint64_t bytes, uint64_t size) {
  if (offset <= size && bytes <= size - offset) return {};
  return fail(Code::out_of_range,
              std::to_string(bytes) + " bytes at " + std::to_string(offset) + " of a buffer of " + std::to_string(size) + " bytes");
}

template <class Backend>
class Table {
  using Device = typename Backend::Device;
  using Buffer = typename Backend::Buffer;
  using Executable = typename Backend::Executable;
  using Event = typename Backend::Event;

  // Set by query, before any other call of the table; devices keep their own copy, so a later host changes only later devices.
  static inline std::atomic<const fth_host*> host_{nullptr};

  static Device* self(fth_device* p) { return reinterpret_cast<Device*>(p); }
  static Buffer* self(fth_buffer* p) { return reinterpret_cast<Buffer*>(p); }
  static Executable* self(fth_executable* p) { return reinterpret_cast<Executable*>(p); }
  static Event* self(fth_event* p) { return reinterpret_cast<Event*>(p); }

  // Runs f, a function that returns Result<std::unique_ptr<T>>, and hands what it made to the caller.
  template <class Opaque, class F>
  static fth_code make(Opaque** out, fth_error* err, F&& f) noexcept {
    return guard(err, [&]() -> Result<> {
      if (out == nullptr) return fail(Code::invalid_argument, "null out parameter");
      FTH_ASSIGN_OR_RETURN(auto made, f());
      if (made == nullptr) return fail(Code::internal, std::string(Backend::kName) + ": null object without an error");
      *out = reinterpret_cast<Opaque*>(made.release());
      return {};
    });
  }
  // As much of `value` as the caller's struct_size says that it knows.
  template <class T>
  static Result<> copy_out(T* out, T value) {
    if (out == nullptr || out->struct_size < sizeof(uint32_t)) return fail(Code::invalid_argument, "out parameter without a struct_size");
    value.struct_size = std::min(out->struct_size, static_cast<uint32_t>(sizeof(T)));
    std::memcpy(out, &value, value.struct_size);
    return {};
  }

  static fth_code device_count(uint32_t* out, fth_error* err) {
    return guard(err, [&]() -> Result<> {
      if (out == nullptr) return fail(Code::invalid_argument, "null out parameter");
      FTH_ASSIGN_OR_RETURN(*out, Backend::device_count(Host(host_.load())));
      return {};
    });
  }
  static fth_code open(uint32_t index, const char* text, fth_device** out, fth_error* err) {
    return make(out, err, [&]() -> Result<std::unique_ptr<Device>> {
      FTH_ASSIGN_OR_RETURN(Options options, Options::parse(text));
      FTH_ASSIGN_OR_RETURN(std::unique_ptr<Device> device, Backend::open(Host(host_.load()), index, options));
      FTH_RETURN_IF_ERROR(options.check_all_taken());
      return device;
    });
  }
  static void close(fth_device* d) { delete self(d); }
  static fth_code info(fth_device* d, fth_device_info* out, fth_error* err) {
    return guard(err, [&]() -> Result<> {
      FTH_ASSIGN_OR_RETURN(const fth_device_info value, self(d)->info());
      return copy_out(out, value);
    });
  }

  static fth_code alloc(fth_device* d, uint64_t bytes, fth_buffer** out, fth_error* err) {
    return make(out, err, [&] { return self(d)->alloc(bytes); });
  }
  static fth_code import_host(fth_device* d, void* p, uint64_t bytes, fth_buffer** out, fth_error* err) {
    return make(out, err, [&] { return self(d)->import_host(p, bytes); });
  }
  static void free_buffer(fth_buffer* b) { delete self(b); }
  static fth_code write(fth_buffer* b, uint64_t offset, const void* src, uint64_t bytes, fth_error* err) {
    return guard(err, [&] { return self(b)->write(offset, src, bytes); });
  }
  static fth_code read(fth_buffer* b, uint64_t offset, void* dst, uint64_t bytes, fth_error* err) {
    return guard(err, [&] { return self(b)->read(offset, dst, bytes); });
  }

  static fth_code estimate(fth_device* d, const fth_segment* s, fth_estimate* out, fth_error* err) {
    return guard(err, [&]() -> Result<> {
      FTH_ASSIGN_OR_RETURN(const SegmentView view, SegmentView::make(s));
      FTH_ASSIGN_OR_RETURN(const fth_estimate value, self(d)->estimate(view));
      return copy_out(out, value);
    });
  }
  static fth_code compile(fth_device* d, const fth_segment* s, const fth_binding* weights, uint32_t n_weights, fth_executable** out,
                          fth_error* err) {
    return make(out, err, [&]() -> Result<std::unique_ptr<Executable>> {
      FTH_ASSIGN_OR_RETURN(const SegmentView view, SegmentView::make(s));
      if (n_weights != view.n_weights())
        return fail(Code::invalid_argument, std::string(view.name()) + ": " + std::to_string(n_weights) +
                                                " weight bindings, the segment has " + std::to_string(view.n_weights()) + " weights");
      return self(d)->compile(view, {weights, n_weights});
    });
  }
  static void release(fth_executable* x) { delete self(x); }
  static fth_code submit(fth_executable* x, const fth_binding* bindings, uint32_t n_bindings, const int64_t* scalars, fth_event** out,
                         fth_error* err) {
    return guard(err, [&]() -> Result<> {
      if (out == nullptr) return fail(Code::invalid_argument, "null out parameter");
      FTH_ASSIGN_OR_RETURN(Event* const event, self(x)->submit({bindings, n_bindings}, scalars));
      *out = reinterpret_cast<fth_event*>(event);
      return {};
    });
  }
  // The backend owns its events and reuses them after wait: submit allocates nothing, so most keep them inside the executable.
  static fth_code wait(fth_event* event, fth_error* err) {
    return guard(err, [&] { return self(event)->wait(); });
  }
  static constexpr bool kCountsNeurons = requires(const Executable& x, uint64_t* n) { x.live_neurons(n, n); };
  static void live_neurons([[maybe_unused]] fth_executable* x, [[maybe_unused]] uint64_t* live, [[maybe_unused]] uint64_t* all) {
    if constexpr (kCountsNeurons) self(x)->live_neurons(live, all);
  }
  static constexpr bool kHasClock = requires(const Executable& x) { x.device_seconds(); };
  static double device_seconds([[maybe_unused]] fth_executable* x) {
    if constexpr (kHasClock)
      return self(x)->device_seconds();
    else
      return -1;
  }

 public:
  static constexpr fth_backend kTable = {.struct_size = sizeof(fth_backend),
                                         .abi_major = FTH_ABI_MAJOR,
                                         .abi_minor = FTH_ABI_MINOR,
                                         .name = Backend::kName,
                                         .build = FTH_BUILD_STRING,
                                         .device_count = device_count,
                                         .open = open,
                                         .close = close,
                                         .info = info,
                                         .alloc = alloc,
                                         .import_host = import_host,
                                         .free = free_buffer,
                                         .write = write,
                                         .read = read,
                                         .estimate = estimate,
                                         .compile = compile,
                                         .release = release,
                                         .submit = submit,
                                         .wait = wait,
                                         .live_neurons = kCountsNeurons ? live_neurons : nullptr,
                                         .device_seconds = kHasClock ? device_seconds : nullptr};
  static const fth_backend* query(uint32_t abi_major, const fth_host* host) noexcept {
    if (abi_major != FTH_ABI_MAJOR || host == nullptr || host->struct_size < sizeof(fth_host)) return nullptr;
    host_.store(host);
    return &kTable;
  }
};

// The table of `Backend`, for a host that speaks this major version; null otherwise.
template <class Backend>
const fth_backend* query(uint32_t abi_major, const fth_host* host) noexcept {
  return Table<Backend>::query(abi_major, host);
}

}  // namespace fth::sdk
#pragma GCC visibility pop

// Defines the plugin's one exported symbol: a function with fth_backend_query_fn's signature answers it.
#define FTH_EXPORT_BACKEND(function) \
  extern "C" FTH_EXPORT const fth_backend* fth_backend_query(uint32_t abi_major, const fth_host* host) { return function(abi_major, host); }
