// Non-maximum suppression of 1-D segments on a CUDA device: the same picks as nms.cpp, tied scores included.
// Plain C ABI on device pointers with a stream handle, compiled by nvcc alone; loaded with ctypes by libs/utils/nms/native.py.
//
// Candidates come in groups, one per video and class: `order` (n) holds candidate indices, group g owns positions
// begin[g]..begin[g + 1] - 1 of it (begin: groups + 1 values), and one thread block works on one group, so that a single launch
// serves a whole batch.  Results of group g stand at the same positions, `counts[g]` of them.  Every function returns a
// cudaError_t; nothing synchronises with the host.
//
// Kernels use barriers, shared memory and integer atomicAdd only (no warp intrinsics): tests/utils/nms/cuda_on_cpu.h runs them on a CPU.
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

// Sum of `value` over the block, by one shared integer.
__device__ int block_sum(int value, int* shared_sum) {
    if (threadIdx.x == 0) *shared_sum = 0;
    __syncthreads();
    if (value != 0) atomicAdd(shared_sum, value);
    __syncthreads();
    const int sum = *shared_sum;
    __syncthreads();
    return sum;
}

// Rough scale of scores: a higher bin means a strictly higher score.  16 steps for each power of 2 from 2^-16 to 1.
constexpr int BINS = TAL_BINS;
__device__ int score_bin(float score) {
    const float positive = score + 0.0f;  // not -0.0
    uint32_t bits;
    memcpy(&bits, &positive, sizeof bits);
    const int bin = static_cast<int>(bits >> 19) - ((127 - 16) << 4);
    return bin < 0 ? 0 : bin < BINS ? bin : BINS - 1;
}

// How many picks in bins above `bin` the groups of a video have made so far.  Other blocks may be adding to it: an old value is
// too small, never too large.
__device__ int picks_above(const int* seen, int bin, int* shared_sum) {
    int above = 0;
    for (int b = bin + 1 + threadIdx.x; b < BINS; b += THREADS) above += static_cast<const volatile int*>(seen)[b];
    return block_sum(above, shared_sum);
}

// Working arrays of all groups, n entries each, in global memory.
struct SoftArrays {
    float *start, *end, *score;
    int64_t* index;
    int *hole, *filler;
};

// What remains after the candidates below min_score were overwritten one by one by the last one: each removed position below
// the new length takes a survivor from above it, in falling order.  Returns the new length.
__device__ int remove_low(const SoftArrays& a, int from, int to, float min_score, int* scratch) {
    const int t = threadIdx.x;
    int low = 0, holes, fillers;
    for (int j = from + t; j < to; j += THREADS) low += a.score[j] < min_score;
    const int removed = block_sum(low, scratch);
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

// `seen` (videos, BINS), zero at first, counts the picks of each video; `owner` is the video of each group.  Scores of a group
// never rise, so a group is done once `limit` picks of its video have scored strictly higher: the merge would cut the rest off.
// Null: no such limit over groups.
__global__ void __launch_bounds__(THREADS)
soft_kernel(const float* segments, const float* scores, const int64_t* order, const int64_t* begin, int method, float threshold,
            float sigma, float min_score, int64_t limit, const int64_t* owner, int* seen, SoftArrays all, int64_t* counts) {
    __shared__ float best_score[THREADS];
    __shared__ int scratch[THREADS];
    const int t = threadIdx.x;
    const int64_t base = begin[blockIdx.x];
    int live = static_cast<int>(begin[blockIdx.x + 1] - base);
    if (seen) seen += BINS * owner[blockIdx.x];
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
        if (seen) {
            const int bin = score_bin(a.score[best]);
            if (picks_above(seen, bin, scratch) >= limit) break;
            if (t == 0) atomicAdd(seen + bin, 1);
        }
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

// `order` is sorted by falling score inside a group; `covered` (n) is scratch, `kept` gets the picks.
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

// One block per kept segment; sums in double.  Segment k listens to candidates order[first[k]..last[k] - 1]; `order` null: to all n.
__global__ void __launch_bounds__(THREADS)
vote_kernel(const float* kept, const float* segments, const float* scores, const int64_t* order, const int64_t* first,
            const int64_t* last, int64_t n, float threshold, bool by_iou, float* out) {
    __shared__ double sums[3][THREADS];
    const int t = threadIdx.x;
    const float s = kept[2 * blockIdx.x], e = kept[2 * blockIdx.x + 1];
    const int64_t from = order ? first[blockIdx.x] : 0, to = order ? last[blockIdx.x] : n;
    double weight = 0.0, start = 0.0, end = 0.0;
    for (int64_t j = from + t; j < to; j += THREADS) {
        const int64_t i = order ? order[j] : j;
        const float w = tal_vote_weight(tal_vote_iou(s, e, segments[2 * i], segments[2 * i + 1]), scores[i], threshold, by_iou);
        weight += w;
        start += static_cast<double>(w) * segments[2 * i];
        end += static_cast<double>(w) * segments[2 * i + 1];
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

// Soft-NMS of every group, at most `limit` picks each and, where `seen` (videos, TAL_BINS; zeros) and `owner` (groups) are given,
// only those that can be among the best `limit` of their video: candidate indices into `index`, decayed scores into `score`
// (both n).  start, end, hole, filler: scratch of n entries.
TAL_API int tal_cuda_soft_nms(const float* segments, const float* scores, const int64_t* order, const int64_t* begin, int groups,
                              int method, float threshold, float sigma, float min_score, int64_t limit, const int64_t* owner,
                              int* seen, float* start, float* end, float* score, int64_t* index, int* hole, int* filler,
                              int64_t* counts, int device, void* stream) {
    const cudaError_t error = use_device(device);
    if (error != cudaSuccess || groups == 0) return error;
    const SoftArrays arrays = {start, end, score, index, hole, filler};
    TAL_LAUNCH(soft_kernel, groups, THREADS, static_cast<cudaStream_t>(stream), segments, scores, order, begin, method, threshold,
               sigma, min_score, limit, owner, seen, arrays, counts);
    return cudaGetLastError();
}

// Hard NMS of every group, at most `limit` picks each, into `kept` (n); `covered`: scratch of n bytes.
TAL_API int tal_cuda_hard_nms(const float* segments, const int64_t* order, const int64_t* begin, int groups, float threshold,
                              int64_t limit, uint8_t* covered, int64_t* kept, int64_t* counts, int device, void* stream) {
    const cudaError_t error = use_device(device);
    if (error != cudaSuccess || groups == 0) return error;
    TAL_LAUNCH(hard_kernel, groups, THREADS, static_cast<cudaStream_t>(stream), segments, order, begin, threshold, limit, covered,
               kept, counts);
    return cudaGetLastError();
}

// Refined boundaries of `count` kept segments into `out` (count, 2); NaN without a voter.  Segment k listens to candidates
// order[first[k]..last[k] - 1]; order, first, last null: to all n.
TAL_API int tal_cuda_vote(const float* kept, int count, const float* segments, const float* scores, const int64_t* order,
                          const int64_t* first, const int64_t* last, int64_t n, float threshold, int by_iou, float* out,
                          int device, void* stream) {
    const cudaError_t error = use_device(device);
    if (error != cudaSuccess || count == 0) return error;
    TAL_LAUNCH(vote_kernel, count, THREADS, static_cast<cudaStream_t>(stream), kept, segments, scores, order, first, last, n,
               threshold, by_iou != 0, out);
    return cudaGetLastError();
}
