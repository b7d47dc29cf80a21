#pragma once
// All kernels, by name: FTH_CUDA_KERNELS(X) says X(name, type) for each. Host code knows the names alone.

#include <cstdint>

#define FTH_CUDA_KERNELS(X)                                \
  X(embed, Embed)                                          \
  X(rms_norm, RmsNorm)                                     \
  X(rope, Rope)                                            \
  X(add, Add)                                              \
  X(relu_glu, ReluGlu)                                     \
  X(silu_glu, SiluGlu)                                     \
  X(combine, Combine)                                      \
  X(kv_store_f32, KvStore<DType::f32>)                     \
  X(kv_store_f16, KvStore<DType::f16>)                     \
  X(kv_store_q8_0, KvStore<DType::q8_0>)                   \
  X(attention_rows_f32, Attention<DType::f32, 8, true>)    \
  X(attention_rows_f16, Attention<DType::f16, 8, true>)    \
  X(attention_rows_q8_0, Attention<DType::q8_0, 8, true>)  \
  X(attention_row_f32, Attention<DType::f32, 1, true>)     \
  X(attention_row_f16, Attention<DType::f16, 1, true>)     \
  X(attention_row_q8_0, Attention<DType::q8_0, 1, true>)   \
  X(attention_tile_f32, Attention<DType::f32, 1, false>)   \
  X(attention_tile_f16, Attention<DType::f16, 1, false>)   \
  X(attention_tile_q8_0, Attention<DType::q8_0, 1, false>) \
  X(attention_merge, AttentionMerge)                       \
  X(matmul_by_value, MatmulByValue)                        \
  FTH_CUDA_MATMULS(X, one, 1)                              \
  FTH_CUDA_MATMULS(X, many, 8)
// In the order of the dtypes' numbers.
#define FTH_CUDA_MATMULS(X, name, columns)              \
  X(matmul_##name##_f32, Matmul<DType::f32, columns>)   \
  X(matmul_##name##_f16, Matmul<DType::f16, columns>)   \
  X(matmul_##name##_bf16, Matmul<DType::bf16, columns>) \
  X(matmul_##name##_q8_0, Matmul<DType::q8_0, columns>) \
  X(matmul_##name##_q4_0, Matmul<DType::q4_0, columns>) \
  X(matmul_##name##_q4_1, Matmul<DType::q4_1, columns>) \
  X(matmul_##name##_q6_k, Matmul<DType::q6_k, columns>) \
  X(matmul_##name##_q4_k, Matmul<DType::q4_k, columns>)

namespace fth::cuda {

#define FTH_CUDA_NAME(name, ...) name,
enum class KernelId : uint32_t { FTH_CUDA_KERNELS(FTH_CUDA_NAME) end };
#undef FTH_CUDA_NAME
inline constexpr uint32_t kKernels = static_cast<uint32_t>(KernelId::end);

// A kernel of a row of the table, `by` places on: those of one dtype or cell type after the other.
constexpr KernelId after(KernelId id, uint32_t by) { return static_cast<KernelId>(static_cast<uint32_t>(id) + by); }

}  // namespace fth::cuda
