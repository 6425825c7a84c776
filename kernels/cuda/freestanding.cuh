// As much of CUDA as our kernels use, with no file of NVIDIA's: clang turns these into PTX on its own.
// Builtins: https://llvm.org/docs/NVPTXUsage.html. `__syncthreads` is a builtin of clang and needs no declaration.
#pragma once

#define __global__ __attribute__((global))
#define __device__ __attribute__((device))

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

// A vector and not a struct: a struct of four words becomes two 8-byte accesses, this becomes one of 16 bytes.
typedef u32 vec16 __attribute__((ext_vector_type(4)));

__device__ static inline u32 thread_x() { return __nvvm_read_ptx_sreg_tid_x(); }
__device__ static inline u32 block_x() { return __nvvm_read_ptx_sreg_ctaid_x(); }
__device__ static inline u32 block_y() { return __nvvm_read_ptx_sreg_ctaid_y(); }
__device__ static inline u32 threads_x() { return __nvvm_read_ptx_sreg_ntid_x(); }
