// Just enough of CUDA to run csrc/nms_cuda.cu on a CPU: every thread of a block is a coroutine, __syncthreads() switches to the
// next one.  Between two barriers the threads run in a shuffled order, so a missing barrier shows as a wrong result; a barrier
// that only some threads reach aborts.  Blocks run one after the other.
// Compile with: -DTAL_CUDA_ON_CPU -DTAL_THREADS=16 -include cuda_on_cpu.h -x c++
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(n)

struct Index3 {
    unsigned x;
};
static Index3 threadIdx, blockIdx;

typedef int cudaError_t;
typedef void* cudaStream_t;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? 0 : 101; }
inline cudaError_t cudaGetLastError() { return 0; }
inline const char* cudaGetErrorString(cudaError_t error) { return error == 101 ? "invalid device ordinal" : "no error"; }

namespace shim {

struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    bool done = false;
};

static ucontext_t scheduler;
static Thread* current = nullptr;
static const std::function<void()>* body = nullptr;

inline void enter() {
    (*body)();
    current->done = true;
    swapcontext(&current->context, &scheduler);
}

inline void run(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
    static uint32_t random = 1;
    body = &kernel;
    for (unsigned block = 0; block < blocks; ++block) {
        std::vector<Thread> all(threads);
        std::vector<unsigned> order(threads);
        for (unsigned t = 0; t < threads; ++t) {
            order[t] = t;
            all[t].stack.resize(1 << 16);
            getcontext(&all[t].context);
            all[t].context.uc_stack.ss_sp = all[t].stack.data();
            all[t].context.uc_stack.ss_size = all[t].stack.size();
            all[t].context.uc_link = nullptr;
            makecontext(&all[t].context, enter, 0);
        }
        for (unsigned finished = 0; finished < threads;) {
            for (unsigned t = threads - 1; t > 0; --t) {
                random = random * 1664525u + 1013904223u;
                std::swap(order[t], order[(random >> 8) % (t + 1)]);
            }
            for (unsigned t : order) {
                current = &all[t];
                threadIdx.x = t;
                blockIdx.x = block;
                swapcontext(&scheduler, &current->context);
                finished += current->done;
            }
            if (finished != 0 && finished != threads) {
                std::fprintf(stderr, "%u of %u threads left while others wait at a barrier\n", finished, threads);
                std::abort();
            }
        }
    }
}

}  // namespace shim

inline void __syncthreads() { swapcontext(&shim::current->context, &shim::scheduler); }

inline int atomicAdd(int* at, int value) {  // only one coroutine runs at a time
    const int before = *at;
    *at = before + value;
    return before;
}

#define TAL_LAUNCH(kernel, blocks, threads, stream, ...) \
    ((void)(stream), shim::run(blocks, threads, [=] { kernel(__VA_ARGS__); }))
