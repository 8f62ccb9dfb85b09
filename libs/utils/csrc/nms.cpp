// Decoding and non-maximum suppression of 1-D segments on the CPU: hard, soft (gaussian, linear, vanilla), voting, and the whole
// per-class job of a batch of videos in a single call.  Plain C ABI, loaded with ctypes by libs/utils/nms/native.py.
//
// segments: (n, 2) float32 start, end; scores: (n) float32, finite; labels: (n) int64.  Counts come back as int64;
// -1 means out of memory.  The caller has checked sizes and values.
#include <algorithm>
#include <cstddef>
#include <limits>
#include <new>
#include <numeric>
#include <queue>
#include <utility>
#include <vector>

#include "decode.h"
#include "nms_common.h"
#include "nms_cpu.h"
#include "nms_soft.h"

namespace {

struct Pick {
    int64_t index;
    float score;
    int64_t group;
};

// Candidate indices ordered by class (ascending), input order inside; `begin` gets the first position of each class and the end.
void group_by_label(const int64_t* labels, int64_t n, bool multiclass, std::vector<int64_t>& order, std::vector<int64_t>& begin) {
    order.resize(n);
    std::iota(order.begin(), order.end(), int64_t{0});
    begin.assign(1, 0);
    if (n == 0) return;
    if (!multiclass) {
        begin.push_back(n);
        return;
    }
    int64_t low = labels[0], high = labels[0];
    for (int64_t i = 0; i < n; ++i) {
        low = std::min(low, labels[i]);
        high = std::max(high, labels[i]);
    }
    const uint64_t range = static_cast<uint64_t>(high) - static_cast<uint64_t>(low);
    if (range > static_cast<uint64_t>(n) + 1000) {  // labels that are no class numbers
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return labels[a] < labels[b]; });
        for (int64_t j = 1; j < n; ++j)
            if (labels[order[j]] != labels[order[j - 1]]) begin.push_back(j);
        begin.push_back(n);
        return;
    }
    std::vector<int64_t> position(range + 1);
    for (int64_t i = 0; i < n; ++i) ++position[labels[i] - low];
    int64_t sum = 0;
    for (int64_t& p : position) {
        const int64_t count = p;
        p = sum;
        sum += count;
        if (count) begin.push_back(sum);
    }
    for (int64_t i = 0; i < n; ++i) order[position[labels[i] - low]++] = i;
}

// The best `limit` soft-NMS picks of all classes.  Scores are >= 0 and weights in [0, 1], so the picks of a class never rise:
// taking the best current pick of any class (lowest class first on ties) gives the order of a stable sort of all picks,
// and the picks after `limit` need not be computed.
void soft_groups(const float* segments, const float* scores, const std::vector<int64_t>& order, const std::vector<int64_t>& begin,
                 float threshold, float sigma, float min_score, int64_t limit, std::vector<Pick>& picks) {
    const int64_t groups = static_cast<int64_t>(begin.size()) - 1;
    int64_t largest = 0;
    for (int64_t g = 0; g < groups; ++g) largest = std::max(largest, begin[g + 1] - begin[g]);
    SoftScratch scratch(largest);
    std::vector<SoftPicker> pickers;
    pickers.reserve(groups);
    const auto later = [&](int64_t a, int64_t b) {
        return pickers[a].score() != pickers[b].score() ? pickers[a].score() < pickers[b].score() : a > b;
    };
    std::priority_queue<int64_t, std::vector<int64_t>, decltype(later)> best(later);
    for (int64_t g = 0; g < groups; ++g) {
        pickers.emplace_back(segments, scores, order.data() + begin[g], begin[g + 1] - begin[g], TAL_GAUSSIAN, threshold, sigma,
                             min_score, scratch);
        best.push(g);
    }
    while (!best.empty() && static_cast<int64_t>(picks.size()) < limit) {
        const int64_t g = best.top();
        best.pop();
        picks.push_back({pickers[g].index(), pickers[g].score(), g});
        if (static_cast<int64_t>(picks.size()) == limit) break;
        pickers[g].advance();
        if (!pickers[g].empty()) best.push(g);
    }
}

// The best `limit` hard-NMS picks of all classes: candidates by score (then class, then input order), each tested against the
// kept ones of its own class.
void hard_groups(const float* segments, const float* scores, const std::vector<int64_t>& order, const std::vector<int64_t>& begin,
                 float threshold, int64_t limit, std::vector<Pick>& picks) {
    const int64_t groups = static_cast<int64_t>(begin.size()) - 1, n = static_cast<int64_t>(order.size());
    std::vector<Pick> queue(n);
    for (int64_t g = 0; g < groups; ++g)
        for (int64_t j = begin[g]; j < begin[g + 1]; ++j) queue[j] = {order[j], scores[order[j]], g};
    std::stable_sort(queue.begin(), queue.end(), [](const Pick& a, const Pick& b) { return a.score > b.score; });
    std::vector<std::vector<std::pair<float, float>>> kept(groups);
    for (const Pick& candidate : queue) {
        if (static_cast<int64_t>(picks.size()) >= limit) break;
        const float s = segments[2 * candidate.index], e = segments[2 * candidate.index + 1];
        auto& mine = kept[candidate.group];
        const bool covered = std::any_of(mine.begin(), mine.end(), [&](const std::pair<float, float>& k) {
            return tal_iou(k.first, k.second, s, e) >= threshold;
        });
        if (covered) continue;
        mine.emplace_back(s, e);
        picks.push_back(candidate);
    }
}

// Weighted mean of the voters' boundaries, summed in double; NaN without a voter.  `index` null: all n candidates vote.
void vote_one(float s, float e, const float* segments, const float* scores, const int64_t* index, int64_t n, float threshold,
              bool by_iou, float* out) {
    double weight = 0.0, start = 0.0, end = 0.0;
    for (int64_t j = 0; j < n; ++j) {
        const int64_t i = index ? index[j] : j;
        const float i_start = segments[2 * i], i_end = segments[2 * i + 1];
        if (tal_overlap(s, e, i_start, i_end) == 0.0f && (e > s || i_end > i_start)) continue;  // weight 0, without a division
        const float w = tal_vote_weight(tal_vote_iou(s, e, i_start, i_end), scores[i], threshold, by_iou);
        if (w == 0.0f) continue;
        weight += w;
        start += static_cast<double>(w) * i_start;
        end += static_cast<double>(w) * i_end;
    }
    const bool any = weight != 0.0;
    out[0] = any ? static_cast<float>(start / weight) : std::numeric_limits<float>::quiet_NaN();
    out[1] = any ? static_cast<float>(end / weight) : std::numeric_limits<float>::quiet_NaN();
}

// What NMS of a video is asked to do, see tal_nms_of_batch.
struct Setting {
    bool soft;
    float threshold, min_score;
    int64_t limit;
    float sigma;
    bool multiclass;
    int vote;
    float vote_threshold;
    bool vote_by_iou;
};

// NMS of the n candidates of one video; outputs hold min(n, limit) rows.  Returns their number.
int64_t nms_of_video(const float* segments, const float* scores, const int64_t* labels, int64_t n, const Setting& setting,
                     float* out_segments, float* out_scores, int64_t* out_labels) {
    std::vector<int64_t> order, begin, high, high_begin;
    std::vector<Pick> picks;
    if (n == 0) return 0;
    group_by_label(labels, n, setting.multiclass, order, begin);
    picks.reserve(std::min(n, setting.limit));
    if (setting.soft) {
        soft_groups(segments, scores, order, begin, setting.threshold, setting.sigma, setting.min_score, setting.limit, picks);
    } else {
        high_begin.push_back(0);  // groups stay aligned with `begin`, some may be empty
        for (size_t g = 0; g + 1 < begin.size(); ++g) {
            for (int64_t j = begin[g]; j < begin[g + 1]; ++j)
                if (scores[order[j]] > setting.min_score) high.push_back(order[j]);
            high_begin.push_back(static_cast<int64_t>(high.size()));
        }
        hard_groups(segments, scores, high, high_begin, setting.threshold, setting.limit, picks);
    }
    const bool own_class = setting.vote == 2;
    for (size_t i = 0; i < picks.size(); ++i) {
        const float* own = segments + 2 * picks[i].index;
        float* out = out_segments + 2 * i;
        if (setting.vote) {
            const int64_t first = own_class ? begin[picks[i].group] : 0, last = own_class ? begin[picks[i].group + 1] : n;
            vote_one(own[0], own[1], segments, scores, own_class ? order.data() + first : nullptr, last - first,
                     setting.vote_threshold, setting.vote_by_iou, out);
        }
        if (!setting.vote || out[0] != out[0] || out[1] != out[1]) {
            out[0] = own[0];
            out[1] = own[1];
        }
        out_scores[i] = picks[i].score;
        out_labels[i] = labels[picks[i].index];
    }
    return static_cast<int64_t>(picks.size());
}

template <typename Body>
int64_t guarded(Body body) {
    try {
        return body();
    } catch (const std::bad_alloc&) {
        return -1;
    }
}

}  // namespace

TAL_API int tal_abi() { return TAL_ABI; }

// Indices kept, best score first (stable), into `kept` (n).
TAL_API int64_t tal_hard_nms(const float* segments, const float* scores, int64_t n, float threshold, int64_t* kept) {
    return guarded([&] {
        std::vector<int64_t> order, begin;
        std::vector<Pick> picks;
        group_by_label(nullptr, n, false, order, begin);
        if (n > 0) hard_groups(segments, scores, order, begin, threshold, n, picks);
        for (size_t i = 0; i < picks.size(); ++i) kept[i] = picks[i].index;
        return static_cast<int64_t>(picks.size());
    });
}

// Picks in selection order: indices into `kept` (n), start, end, decayed score into `rows` (n, 3).
TAL_API int64_t tal_soft_nms(const float* segments, const float* scores, int64_t n, int method, float threshold, float sigma,
                             float min_score, int64_t* kept, float* rows) {
    return guarded([&] {
        std::vector<int64_t> order(n);
        std::iota(order.begin(), order.end(), int64_t{0});
        SoftScratch scratch(n);
        SoftPicker picker(segments, scores, order.data(), n, method, threshold, sigma, min_score, scratch);
        int64_t count = 0;
        for (; !picker.empty(); picker.advance(), ++count) {
            kept[count] = picker.index();
            rows[3 * count] = segments[2 * picker.index()];
            rows[3 * count + 1] = segments[2 * picker.index() + 1];
            rows[3 * count + 2] = picker.score();
        }
        return count;
    });
}

// Refined boundaries of `count` kept segments into `out` (count, 2).
TAL_API void tal_vote(const float* kept, int64_t count, const float* segments, const float* scores, int64_t n, float threshold,
                      int by_iou, float* out) {
    for (int64_t k = 0; k < count; ++k)
        vote_one(kept[2 * k], kept[2 * k + 1], segments, scores, nullptr, n, threshold, by_iou != 0, out + 2 * k);
}

// NMS of every video of a batch: per class or over all labels, each video capped at `limit`, best score first.  Video v owns the
// next counts[v] candidates; its results follow those of the videos before it, out_counts[v] of them.  Outputs hold
// sum(min(counts[v], limit)) rows; returns how many are filled.  `threads` work on the videos, with the same results.
// `soft` 1: gaussian soft-NMS (scores must be >= 0); 0: hard, after dropping scores <= min_score.  `vote` 0: no voting, 1: among
// all candidates of the video with their input scores, 2: among those of the pick's class; a pick without voters keeps its
// boundaries; `vote_by_iou`: votes count by score * IoU, else by score.
TAL_API int64_t tal_nms_of_batch(const float* segments, const float* scores, const int64_t* labels, const int64_t* counts,
                                 int64_t videos, int soft, float threshold, float min_score, int64_t limit, float sigma,
                                 int multiclass, int vote, float vote_threshold, int vote_by_iou, int threads,
                                 float* out_segments, float* out_scores, int64_t* out_labels, int64_t* out_counts) {
    return guarded([&]() -> int64_t {
        const Setting setting = {soft != 0,       threshold, min_score,      limit,           sigma,
                                 multiclass != 0, vote,      vote_threshold, vote_by_iou != 0};
        std::vector<int64_t> first(1, 0), room(1, 0);
        for (int64_t v = 0; v < videos; ++v) {
            first.push_back(first[v] + counts[v]);
            room.push_back(room[v] + std::min(counts[v], limit));
        }
        const bool done = for_each_video(videos, threads, [&](int64_t v) {
            out_counts[v] = nms_of_video(segments + 2 * first[v], scores + first[v], labels + first[v], counts[v], setting,
                                         out_segments + 2 * room[v], out_scores + room[v], out_labels + room[v]);
        });
        if (!done) return -1;
        close_gaps(out_segments, 2, room, out_counts);
        close_gaps(out_scores, 1, room, out_counts);
        close_gaps(out_labels, 1, room, out_counts);
        return std::accumulate(out_counts, out_counts + videos, int64_t{0});
    });
}

// Candidates of every video of a batch: levels fine to coarse, in each the best `topk` scores above the threshold (equal ones by
// point, then class), of those the ones longer than `duration`.  scores (videos, P, classes) after the sigmoid, offsets
// (videos, P, 2), mask (videos, P) bytes, points (P, 4), level_sizes (levels) with sum P.  Video v fills out_counts[v] rows after
// those of the videos before it; outputs hold videos * sum(min(topk, level_sizes * classes)) rows.  Returns how many are filled.
TAL_API int64_t tal_decode(const float* scores, const float* offsets, const uint8_t* mask, const float* points,
                           const int64_t* level_sizes, int64_t levels, int64_t videos, int64_t classes, float threshold,
                           int64_t topk, float duration, int threads, float* out_segments, float* out_scores, int64_t* out_labels,
                           int64_t* out_counts) {
    return guarded([&]() -> int64_t {
        int64_t size = 0, most = 0;
        for (int64_t l = 0; l < levels; ++l) {
            size += level_sizes[l];
            most += std::min(topk, level_sizes[l] * classes);
        }
        std::vector<int64_t> room(videos + 1);
        for (int64_t v = 0; v <= videos; ++v) room[v] = v * most;
        const bool done = for_each_video(videos, threads, [&](int64_t v) {
            out_counts[v] = decode_video(scores + v * size * classes, offsets + 2 * v * size, mask + v * size, points, level_sizes,
                                         levels, classes, threshold, topk, duration, out_segments + 2 * room[v],
                                         out_scores + room[v], out_labels + room[v]);
        });
        if (!done) return -1;
        close_gaps(out_segments, 2, room, out_counts);
        close_gaps(out_scores, 1, room, out_counts);
        close_gaps(out_labels, 1, room, out_counts);
        return std::accumulate(out_counts, out_counts + videos, int64_t{0});
    });
}
