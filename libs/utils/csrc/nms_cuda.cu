// Non-maximum suppression of 1-D segments on a CUDA device: the same picks as nms.cpp, tied scores included.
// Plain C ABI on device pointers with a stream handle, compiled by nvcc alone; loaded with ctypes by libs/utils/nms_native.py.
//
// Candidates come grouped by class: `order` (n) holds candidate indices, class g owns positions begin[g]..begin[g + 1] - 1 of
// it (begin: groups + 1 values), and one thread block works on one class.  Results of class g stand at the same positions,
// `counts[g]` of them.  Every function returns a cudaError_t; nothing synchronises with the host.
//
// Kernels use barriers and shared memory only (no warp intrinsics, no atomics): tests/utils/cuda_on_cpu.h runs them on a CPU.
#ifndef TAL_CUDA_ON_CPU
#include <cuda_runtime.h>
#define TAL_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, stream>>>(__VA_ARGS__)
#endif

#include "nms_common.h"

#ifndef TAL_THREADS
#define TAL_THREADS 512
#endif

namespace {

constexpr int THREADS = TAL_THREADS;  // a power of two

// Sum of `value` over the block, and the sum over the threads before this one.  `scratch` holds THREADS ints.
__device__ int block_scan(int value, int* scratch, int* total) {
    const int t = threadIdx.x;
    scratch[t] = value;
    __syncthreads();
    for (int step = 1; step < THREADS; step *= 2) {
        const int add = t >= step ? scratch[t - step] : 0;
        __syncthreads();
        scratch[t] += add;
        __syncthreads();
    }
    const int before = scratch[t] - value;
    *total = scratch[THREADS - 1];
    __syncthreads();
    return before;
}

// Position of the first strict maximum of score[from..to - 1] (from < to).
__device__ int block_first_max(const float* score, int from, int to, float* best_score, int* best_at) {
    const int t = threadIdx.x;
    int at = -1;
    for (int j = from + t; j < to; j += THREADS)
        if (at < 0 || score[j] > score[at]) at = j;
    best_at[t] = at;
    best_score[t] = at < 0 ? 0.0f : score[at];
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (t < half && best_at[t + half] >= 0) {
            const float mine = best_score[t], other = best_score[t + half];
            if (best_at[t] < 0 || other > mine || (other == mine && best_at[t + half] < best_at[t])) {
                best_score[t] = other;
                best_at[t] = best_at[t + half];
            }
        }
        __syncthreads();
    }
    const int result = best_at[0];
    __syncthreads();
    return result;
}

// Working arrays of all classes, n entries each, in global memory.
struct SoftArrays {
    float *start, *end, *score;
    int64_t* index;
    int *hole, *filler;
};

// What remains after the candidates below min_score were overwritten one by one by the last one: each removed position below
// the new length takes a survivor from above it, in falling order.  Returns the new length.
__device__ int remove_low(const SoftArrays& a, int from, int to, float min_score, int* scratch) {
    const int t = threadIdx.x;
    int low = 0, removed, holes, fillers;
    for (int j = from + t; j < to; j += THREADS) low += a.score[j] < min_score;
    block_scan(low, scratch, &removed);
    if (removed == 0) return to;
    const int length = to - removed;

    int chunk = (length - from + THREADS - 1) / THREADS;  // a run of neighbours per thread keeps the order
    int first = from + t * chunk, last = first + chunk < length ? first + chunk : length;
    int mine = 0;
    for (int j = first; j < last; ++j) mine += a.score[j] < min_score;
    int rank = block_scan(mine, scratch, &holes);
    for (int j = first; j < last; ++j)
        if (a.score[j] < min_score) a.hole[rank++] = j;

    chunk = (to - length + THREADS - 1) / THREADS;
    first = length + t * chunk;
    last = first + chunk < to ? first + chunk : to;
    mine = 0;
    for (int j = first; j < last; ++j) mine += !(a.score[j] < min_score);
    rank = block_scan(mine, scratch, &fillers);
    for (int j = first; j < last; ++j)
        if (!(a.score[j] < min_score)) a.filler[fillers - 1 - rank++] = j;
    __syncthreads();

    for (int r = t; r < holes; r += THREADS) {
        const int to_position = a.hole[r], from_position = a.filler[r];
        a.start[to_position] = a.start[from_position];
        a.end[to_position] = a.end[from_position];
        a.score[to_position] = a.score[from_position];
        a.index[to_position] = a.index[from_position];
    }
    __syncthreads();
    return length;
}

__global__ void __launch_bounds__(THREADS)
soft_kernel(const float* segments, const float* scores, const int64_t* order, const int64_t* begin, int method, float threshold,
            float sigma, float min_score, int64_t limit, SoftArrays all, int64_t* counts) {
    __shared__ float best_score[THREADS];
    __shared__ int scratch[THREADS];
    const int t = threadIdx.x;
    const int64_t base = begin[blockIdx.x];
    int live = static_cast<int>(begin[blockIdx.x + 1] - base);
    const SoftArrays a = {all.start + base, all.end + base, all.score + base, all.index + base, all.hole + base, all.filler + base};
    for (int j = t; j < live; j += THREADS) {
        const int64_t i = order[base + j];
        a.start[j] = segments[2 * i];
        a.end[j] = segments[2 * i + 1];
        a.score[j] = scores[i];
        a.index[j] = i;
    }
    __syncthreads();
    int at = 0;
    for (; at < live && at < limit; ++at) {
        const int best = block_first_max(a.score, at, live, best_score, scratch);
        const float s = a.start[best], e = a.end[best];
        __syncthreads();  // everyone has read the pick before thread 0 moves it
        if (t == 0 && best != at) {
            const float start = a.start[at], end = a.end[at], score = a.score[at];
            const int64_t index = a.index[at];
            a.start[at] = a.start[best];
            a.end[at] = a.end[best];
            a.score[at] = a.score[best];
            a.index[at] = a.index[best];
            a.start[best] = start;
            a.end[best] = end;
            a.score[best] = score;
            a.index[best] = index;
        }
        __syncthreads();
        for (int j = at + 1 + t; j < live; j += THREADS)
            a.score[j] *= tal_weight(method, tal_iou(s, e, a.start[j], a.end[j]), threshold, sigma);
        __syncthreads();
        live = remove_low(a, at + 1, live, min_score, scratch);
    }
    if (t == 0) counts[blockIdx.x] = at;
}

// `order` is sorted by falling score inside a class; `covered` (n) is scratch, `kept` gets the picks.
__global__ void __launch_bounds__(THREADS)
hard_kernel(const float* segments, const int64_t* order, const int64_t* begin, float threshold, int64_t limit, uint8_t* covered,
            int64_t* kept, int64_t* counts) {
    const int t = threadIdx.x;
    const int64_t base = begin[blockIdx.x];
    const int n = static_cast<int>(begin[blockIdx.x + 1] - base);
    order += base;
    covered += base;
    kept += base;
    for (int j = t; j < n; j += THREADS) covered[j] = 0;
    __syncthreads();
    int64_t count = 0;
    for (int i = 0; i < n && count < limit; ++i) {
        if (covered[i]) continue;  // the same for all threads: nothing is written between the last barrier and here
        if (t == 0) kept[count] = order[i];
        ++count;
        const float s = segments[2 * order[i]], e = segments[2 * order[i] + 1];
        for (int j = i + 1 + t; j < n; j += THREADS)
            if (!covered[j] && tal_iou(s, e, segments[2 * order[j]], segments[2 * order[j] + 1]) >= threshold) covered[j] = 1;
        __syncthreads();
    }
    if (t == 0) counts[blockIdx.x] = count;
}

// One block per kept segment; sums in double.
__global__ void __launch_bounds__(THREADS)
vote_kernel(const float* kept, const float* segments, const float* scores, int64_t n, float threshold, float* out) {
    __shared__ double sums[3][THREADS];
    const int t = threadIdx.x;
    const float s = kept[2 * blockIdx.x], e = kept[2 * blockIdx.x + 1];
    double weight = 0.0, start = 0.0, end = 0.0;
    for (int64_t j = t; j < n; j += THREADS) {
        const float w = tal_vote_weight(tal_vote_iou(s, e, segments[2 * j], segments[2 * j + 1]), scores[j], threshold);
        weight += w;
        start += static_cast<double>(w) * segments[2 * j];
        end += static_cast<double>(w) * segments[2 * j + 1];
    }
    sums[0][t] = weight;
    sums[1][t] = start;
    sums[2][t] = end;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (t < half)
            for (int k = 0; k < 3; ++k) sums[k][t] += sums[k][t + half];
        __syncthreads();
    }
    if (t < 2) out[2 * blockIdx.x + t] = static_cast<float>(sums[1 + t][0] / sums[0][0]);  // 0 / 0, NaN, without a voter
}

// Kernels go to the current device; the caller (Python) restores its own afterwards.
cudaError_t use_device(int device) {
    int current = -1;
    const cudaError_t error = cudaGetDevice(&current);
    return error != cudaSuccess || current == device ? error : cudaSetDevice(device);
}

}  // namespace

TAL_API int tal_cuda_abi() { return TAL_ABI; }

TAL_API const char* tal_cuda_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

// Soft-NMS of every class, at most `limit` picks each: candidate indices into `index`, decayed scores into `score` (both n).
// start, end, hole, filler: scratch of n entries.
TAL_API int tal_cuda_soft_nms(const float* segments, const float* scores, const int64_t* order, const int64_t* begin, int groups,
                              int method, float threshold, float sigma, float min_score, int64_t limit, float* start, float* end,
                              float* score, int64_t* index, int* hole, int* filler, int64_t* counts, int device, void* stream) {
    const cudaError_t error = use_device(device);
    if (error != cudaSuccess || groups == 0) return error;
    const SoftArrays arrays = {start, end, score, index, hole, filler};
    TAL_LAUNCH(soft_kernel, groups, THREADS, static_cast<cudaStream_t>(stream), segments, scores, order, begin, method, threshold,
               sigma, min_score, limit, arrays, counts);
    return cudaGetLastError();
}

// Hard NMS of every class, at most `limit` picks each, into `kept` (n); `covered`: scratch of n bytes.
TAL_API int tal_cuda_hard_nms(const float* segments, const int64_t* order, const int64_t* begin, int groups, float threshold,
                              int64_t limit, uint8_t* covered, int64_t* kept, int64_t* counts, int device, void* stream) {
    const cudaError_t error = use_device(device);
    if (error != cudaSuccess || groups == 0) return error;
    TAL_LAUNCH(hard_kernel, groups, THREADS, static_cast<cudaStream_t>(stream), segments, order, begin, threshold, limit, covered,
               kept, counts);
    return cudaGetLastError();
}

// Refined boundaries of `count` kept segments into `out` (count, 2); NaN without a voter.
TAL_API int tal_cuda_vote(const float* kept, int count, const float* segments, const float* scores, int64_t n, float threshold,
                          float* out, int device, void* stream) {
    const cudaError_t error = use_device(device);
    if (error != cudaSuccess || count == 0) return error;
    TAL_LAUNCH(vote_kernel, count, THREADS, static_cast<cudaStream_t>(stream), kept, segments, scores, n, threshold, out);
    return cudaGetLastError();
}
