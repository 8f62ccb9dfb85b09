// Arithmetic of one candidate pair, shared by nms.cpp and nms_cuda.cu (libs/utils/nms/fallback.py repeats it in numpy).
// Every step is one IEEE operation in a fixed order, without fused multiply-add, so that a CPU, a GPU and numpy get
// the same bits and therefore the same picks.  Build with -ffp-contract=off (nvcc: --fmad=false), never with -ffast-math.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define TAL_HD __host__ __device__ __forceinline__
#else
#define TAL_HD inline
#endif

#if defined(_WIN32)
#define TAL_API extern "C" __declspec(dllexport)
#else
#define TAL_API extern "C" __attribute__((visibility("default")))
#endif

constexpr int TAL_ABI = 3;  // raise with every change of a signature; libs/utils/nms/native.py refuses other values
constexpr int TAL_BINS = 256;  // the same number in libs/utils/nms/native.py

enum TalMethod : int { TAL_VANILLA = 0, TAL_LINEAR = 1, TAL_GAUSSIAN = 2 };

TAL_HD float tal_overlap(float s1, float e1, float s2, float e2) {
    const float left = s1 > s2 ? s1 : s2, right = e1 < e2 ? e1 : e2, inter = right - left;
    return inter > 0.0f ? inter : 0.0f;
}

// tIoU of suppression: lengths are taken + 1e-6, so that two empty segments have IoU 0 and not NaN (SPEC 43).
TAL_HD float tal_iou_of(float inter, float s1, float e1, float s2, float e2) {
    const float length1 = (e1 - s1) + 1e-6f, length2 = (e2 - s2) + 1e-6f;
    const float both = length1 + length2;
    return inter / (both - inter);
}

TAL_HD float tal_iou(float s1, float e1, float s2, float e2) { return tal_iou_of(tal_overlap(s1, e1, s2, e2), s1, e1, s2, e2); }

// tIoU of voting: true lengths; NaN for two empty segments (SPEC 42).
TAL_HD float tal_vote_iou(float s1, float e1, float s2, float e2) {
    const float inter = tal_overlap(s1, e1, s2, e2);
    const float both = (e1 - s1) + (e2 - s2);
    return inter / (both - inter);
}

// exp(x) for -104 <= x <= 0, rounded to float32: Taylor polynomial in double on |r| <= ln(2)/2 (remainder below 1e-14), scaled by 2^k.
// The libraries' own expf differ in the last bit from one machine to the next, which is enough to swap two near-equal picks.
TAL_HD float tal_exp_of_clamped(float argument) {
    const double x = argument;
    const double shifter = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to the nearest integer k, left in the low bits
    const double shifted = x * 1.4426950408889634 + shifter;
    const double r = x - (shifted - shifter) * 0.6931471805599453;
    double sum = 1.0 / 39916800.0;
    sum = sum * r + 1.0 / 3628800.0;
    sum = sum * r + 1.0 / 362880.0;
    sum = sum * r + 1.0 / 40320.0;
    sum = sum * r + 1.0 / 5040.0;
    sum = sum * r + 1.0 / 720.0;
    sum = sum * r + 1.0 / 120.0;
    sum = sum * r + 1.0 / 24.0;
    sum = sum * r + 1.0 / 6.0;
    sum = sum * r + 0.5;
    sum = sum * r + 1.0;
    sum = sum * r + 1.0;
    uint64_t bits, zero;
    memcpy(&bits, &shifted, sizeof bits);
    memcpy(&zero, &shifter, sizeof zero);
    bits = (bits - zero + 1023) << 52;  // 2^k, k >= -151
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return static_cast<float>(sum * scale);
}

TAL_HD float tal_clamp(float argument) { return argument > -104.0f ? argument : -104.0f; }  // exp(-104) rounds to 0

// exp(x) for x <= 0.
TAL_HD float tal_exp(float argument) { return tal_exp_of_clamped(tal_clamp(argument)); }

// Factor by which a candidate of that IoU with the pick decays; exactly 1 at IoU 0 for the gaussian.
TAL_HD float tal_weight(int method, float iou, float threshold, float sigma) {
    if (method == TAL_GAUSSIAN) return iou > 0.0f ? tal_exp(-(iou * iou) / sigma) : 1.0f;
    if (!(iou >= threshold)) return 1.0f;
    return method == TAL_LINEAR ? 1.0f - iou : 0.0f;
}

// Weight of one voter: score (`by_iou`: times IoU) from the threshold on, else 0; NaN (not 0) where the IoU is NaN.
TAL_HD float tal_vote_weight(float iou, float score, float threshold, bool by_iou) {
    return (iou >= threshold ? score : 0.0f) * (by_iou || iou != iou ? iou : 1.0f);
}
