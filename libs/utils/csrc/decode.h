// Candidates of one video on the CPU, before NMS (SPEC 41): libs/modeling/decode.py says what they are.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

// Stable sort of keys by their upper 32 bits, rising; `other` is scratch of the same size.
inline void sort_by_upper_half(std::vector<uint64_t>& keys, std::vector<uint64_t>& other) {
    constexpr int BITS = 11, BINS = 1 << BITS;
    for (int shift = 32; shift < 64; shift += BITS) {
        size_t position[BINS] = {};
        for (const uint64_t key : keys) ++position[(key >> shift) & (BINS - 1)];
        size_t sum = 0;
        for (size_t& p : position) {
            const size_t count = p;
            p = sum;
            sum += count;
        }
        for (const uint64_t key : keys) other[position[(key >> shift) & (BINS - 1)]++] = key;
        keys.swap(other);
    }
}

// Entries (point * classes + class) of points first..last - 1 whose masked score is above the threshold: scores falling, equal ones
// in entry order, the first `topk`.  Scores are >= 0, so that their bits order them.
inline void best_of_level(const float* scores, const uint8_t* mask, int64_t first, int64_t last, int64_t classes, float threshold,
                          int64_t topk, std::vector<uint64_t>& keys, std::vector<uint64_t>& other) {
    size_t found = 0;
    keys.clear();
    for (int64_t point = first; point < last; ++point) {
        int any = 0;  // most points have no score above the threshold, masked or not (masking lowers it to 0)
        for (int64_t entry = point * classes; entry < (point + 1) * classes; ++entry) any |= scores[entry] > threshold;
        if (!any) continue;
        if (keys.size() < found + classes) keys.resize(2 * (found + classes));
        const float valid = mask[point] ? 1.0f : 0.0f;
        for (int64_t entry = point * classes; entry < (point + 1) * classes; ++entry) {
            const float score = scores[entry] * valid;
            uint32_t bits;
            memcpy(&bits, &score, sizeof bits);
            keys[found] = static_cast<uint64_t>(~bits) << 32 | static_cast<uint64_t>(entry);
            found += score > threshold;
        }
    }
    keys.resize(found);
    other.resize(found);
    sort_by_upper_half(keys, other);
    if (static_cast<int64_t>(found) > topk) keys.resize(topk);
}

// Candidates of one video into out_*; how many.  scores (P, K) after the sigmoid, offsets (P, 2), mask (P), points (P, 4).
inline int64_t decode_video(const float* scores, const float* offsets, const uint8_t* mask, const float* points,
                            const int64_t* level_sizes, int64_t levels, int64_t classes, float threshold, int64_t topk,
                            float duration, float* out_segments, float* out_scores, int64_t* out_labels) {
    std::vector<uint64_t> keys, other;
    int64_t first = 0, count = 0;
    for (int64_t level = 0; level < levels; first += level_sizes[level++]) {
        best_of_level(scores, mask, first, first + level_sizes[level], classes, threshold, topk, keys, other);
        for (const uint64_t key : keys) {
            const uint32_t bits = ~static_cast<uint32_t>(key >> 32);
            const uint32_t entry = static_cast<uint32_t>(key), point = entry / static_cast<uint32_t>(classes);
            const float t = points[size_t{4} * point], stride = points[size_t{4} * point + 3];
            const float start = t - offsets[size_t{2} * point] * stride, end = t + offsets[size_t{2} * point + 1] * stride;
            if (!(end - start > duration)) continue;
            out_segments[2 * count] = start;
            out_segments[2 * count + 1] = end;
            memcpy(out_scores + count, &bits, sizeof bits);
            out_labels[count++] = entry - point * static_cast<uint32_t>(classes);
        }
    }
    return count;
}
