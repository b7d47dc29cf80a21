/* The plugin boundary: the only header that the core and a backend share. C11, self-contained, also C++20.
 *
 * Nouns: Backend -> Device -> Buffer, Segment -> Executable -> Event, and a caller-owned error. One exported symbol.
 * Every struct that crosses starts with struct_size: each side reads only what both know. Versioning: CHANGELOG.md beside this file.
 * Ownership: whoever makes an object frees it, through the table; no reference counts. A plugin is never unloaded.
 * Threads: the host calls one device's functions from one thread at a time; different devices may be called at once.
 * Strings are UTF-8, zero-terminated, and live as long as the struct that points at them.
 * No exception may leave a function of this table: sdk/backend.h has the one guard. */
#ifndef FTH_BACKEND_H_
#define FTH_BACKEND_H_
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

#define FTH_ABI_MAJOR 1u /* removed, reordered or retyped something */
#define FTH_ABI_MINOR 2u /* appended a field or a function pointer   */

typedef int32_t fth_code; /* values of the canonical (absl) status codes */
enum {
  FTH_OK = 0,
  FTH_CANCELLED = 1,
  FTH_INVALID_ARGUMENT = 3,
  FTH_NOT_FOUND = 5,
  FTH_RESOURCE_EXHAUSTED = 8,
  FTH_FAILED_PRECONDITION = 9,
  FTH_OUT_OF_RANGE = 11,
  FTH_UNIMPLEMENTED = 12,
  FTH_INTERNAL = 13,
  FTH_UNAVAILABLE = 14,
  FTH_DATA_LOSS = 15
};

/* Caller-owned; the callee writes it only when it returns other than FTH_OK. */
typedef struct fth_error {
  char message[256];
} fth_error;

typedef struct fth_device fth_device; /* opaque, made and freed by the plugin */
typedef struct fth_buffer fth_buffer;
typedef struct fth_executable fth_executable;
typedef struct fth_event fth_event;

enum { FTH_LOG_ERROR = 0, FTH_LOG_WARNING = 1, FTH_LOG_INFO = 2, FTH_LOG_DEBUG = 3 };

/* Services the host lends to a plugin; valid for the life of the process, callable from any thread. */
typedef struct fth_host {
  uint32_t struct_size;
  uint32_t n_threads; /* workers that parallel_for uses, the caller included */
  void* self;
  void (*log)(void* self, int32_t level, const char* message);
  /* Runs body(arg, i) once for each i in [0, n) on the host's pool; returns when all are done, with all writes visible. n may be larger than n_threads:
   * each thread takes indices in ascending order as it comes free. A body may wait for what smaller indices do, and for nothing else; it must not
   * throw and must not call parallel_for. */
  void (*parallel_for)(void* self, uint32_t n, void (*body)(void* arg, uint32_t i), void* arg);
} fth_host;

enum { /* element types; quantised blocks as GGUF stores them: core/base/dtype.h */
       FTH_DTYPE_F32 = 0,
       FTH_DTYPE_F16 = 1,
       FTH_DTYPE_BF16 = 2,
       FTH_DTYPE_Q8_0 = 3,
       FTH_DTYPE_Q4_0 = 4,
       FTH_DTYPE_Q4_1 = 5,
       FTH_DTYPE_Q6_K = 6,
       FTH_DTYPE_Q4_K = 7,
       FTH_DTYPE_I32 = 8
};

enum {
  FTH_ROLE_INPUT = 0,  /* bound at submit, read                                                  */
  FTH_ROLE_OUTPUT = 1, /* bound at submit, written                                               */
  FTH_ROLE_WEIGHT = 2, /* bound at compile, constant for the life of the executable                  */
  FTH_ROLE_STATE = 3,  /* bound at submit, read and written (a KV cache)                               */
  FTH_ROLE_TEMP = 4,   /* lives inside one submit, placed by the backend in its workspace                */
  FTH_ROLE_SLOTS = 5   /* dims[0] slots, one binding each at submit: dims[1..] is the shape of one (experts) */
};

typedef struct fth_tensor { /* one value of a segment; shapes are always static, slowest dimension first, row-major */
  uint16_t dtype, role;
  uint32_t rank;
  int64_t dims[4];
  uint64_t layout; /* 0 = row-major; no other value is defined in this version */
} fth_tensor;

#define FTH_MAX_OP_IN 8
#define FTH_MAX_OP_OUT 4
#define FTH_MAX_OP_ATTR 8
#define FTH_NO_TENSOR 0xffffu

typedef struct fth_op { /* indices are into fth_segment.tensors; meaning per kind: fth_ops.def */
  uint16_t kind, n_in, n_out, reserved;
  uint16_t in[FTH_MAX_OP_IN], out[FTH_MAX_OP_OUT];
  double attr[FTH_MAX_OP_ATTR];
} fth_op;

enum {
#define FTH_OP(number, NAME, text) FTH_OP_##NAME = number,
#include "fth_ops.def"
#undef FTH_OP
  FTH_OP_KIND_END
};

/* Scalars of a submit: int64_t each, n_scalars of them. */
enum {
  FTH_SCALAR_TOKENS = 0, /* rows that hold tokens, 1 .. N; the others are neither read nor written */
  FTH_SCALAR_POS = 1,    /* position of row 0                                                    */
  FTH_SCALAR_SLOTS = 2,  /* expert slots in use, 0 .. S                                           */
  FTH_SCALAR_COUNT = 3
};

typedef struct fth_segment { /* what is placed, compiled and timed as one unit: a straight list of ops in order */
  uint32_t struct_size;
  uint32_t n_tensors, n_ops, n_scalars;
  const char* name; /* "layer.3.attention.t1" */
  const fth_tensor* tensors;
  const fth_op* ops;
} fth_segment;

typedef struct fth_estimate {
  uint32_t struct_size;
  uint32_t reserved;
  double seconds;           /* predicted time of one run with every row in use          */
  uint64_t workspace_bytes; /* scratch that the host binds at each submit; may be shared   */
  uint64_t resident_bytes;  /* what the executable keeps beyond its bindings (baked weights) */
} fth_estimate;

typedef struct fth_binding {
  fth_buffer* buffer;
  uint64_t offset, bytes;
} fth_binding;

enum { FTH_KIND_CPU = 1, FTH_KIND_GPU = 2, FTH_KIND_NPU = 3 };
enum {
  FTH_DEVICE_HOST_MEMORY = 1, /* import_host works: the device reads and writes the host's memory in place */
  FTH_DEVICE_SOFTWARE = 2     /* runs on the CPU behind a driver (a rasteriser): listed, not chosen by default */
};

typedef struct fth_device_info {
  uint32_t struct_size;
  uint32_t kind, flags, reserved;
  char name[64];         /* "vulkan:0" */
  char description[192]; /* for people: model, driver, and for a CPU the kernel tables with the reason for each that is not used */
  uint64_t memory_bytes, free_bytes, alignment;
  double bytes_per_second, flops_per_second, launch_seconds; /* 0 = not known */
} fth_device_info;

typedef struct fth_backend {
  uint32_t struct_size;
  uint16_t abi_major, abi_minor;
  const char *name, *build; /* "vulkan"; compiler, version and sanitizer: FTH_BUILD_STRING of the sdk */

  /* FTH_OK with *out = 0 means: driver present, no device. FTH_UNAVAILABLE with the reason: no driver. */
  fth_code (*device_count)(uint32_t* out, fth_error* err);
  /* options: "key=value,key=value" or NULL; an unknown key or value is FTH_INVALID_ARGUMENT that names it. */
  fth_code (*open)(uint32_t index, const char* options, fth_device** out, fth_error* err);
  void (*close)(fth_device*);
  fth_code (*info)(fth_device*, fth_device_info* out, fth_error* err);

  fth_code (*alloc)(fth_device*, uint64_t bytes, fth_buffer** out, fth_error* err);
  /* Wraps host memory that outlives the buffer. FTH_UNIMPLEMENTED when the device cannot read it in place. */
  fth_code (*import_host)(fth_device*, void* p, uint64_t bytes, fth_buffer** out, fth_error* err);
  void (*free)(fth_buffer*);
  fth_code (*write)(fth_buffer*, uint64_t offset, const void* src, uint64_t bytes, fth_error* err);
  fth_code (*read)(fth_buffer*, uint64_t offset, void* dst, uint64_t bytes, fth_error* err);

  /* The only declaration of support: FTH_OK with the cost, or FTH_UNIMPLEMENTED with a reason that names op, tensor and number. */
  fth_code (*estimate)(fth_device*, const fth_segment*, fth_estimate* out, fth_error* err);
  /* weights: one binding per WEIGHT tensor, in tensor order; they must outlive the executable. The segment need not. */
  fth_code (*compile)(fth_device*, const fth_segment*, const fth_binding* weights, uint32_t n_weights, fth_executable** out,
                      fth_error* err);
  void (*release)(fth_executable*);
  /* bindings: for each INPUT, OUTPUT, STATE and SLOTS tensor, in tensor order (SLOTS: dims[0] of them, unused ones all zero), then one for
   * the workspace if the estimate asked for any. They stay valid until wait returns. Allocates nothing. */
  fth_code (*submit)(fth_executable*, const fth_binding* bindings, uint32_t n_bindings, const int64_t* scalars, fth_event** out,
                     fth_error* err);
  fth_code (*wait)(fth_event*, fth_error* err); /* blocks, then frees the event */

  /* Since 1.1; NULL where nothing is counted. Of the rows that this executable's EXPERTS had alone in their slots since it was compiled: neurons whose
   * gate let something pass, and all neurons. Between submits. */
  void (*live_neurons)(fth_executable*, uint64_t* live, uint64_t* all);
  /* Since 1.2; NULL where the device has no clock of its own. What the last run that was waited for took on the device, from the first command's start to the
   * last one's end, by that clock; negative where it is not known. */
  double (*device_seconds)(fth_executable*);
} fth_backend;

/* The one exported symbol. NULL if the plugin cannot serve this major version. `host` outlives the plugin. */
typedef const fth_backend* (*fth_backend_query_fn)(uint32_t abi_major, const fth_host* host);
#define FTH_BACKEND_QUERY_SYMBOL "fth_backend_query"
#if defined(_WIN32)
#define FTH_EXPORT __declspec(dllexport)
#else
#define FTH_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
}
#endif
#endif
