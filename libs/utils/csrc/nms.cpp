// Non-maximum suppression of 1-D segments on the CPU: hard, soft (gaussian, linear, vanilla), voting, and the whole
// per-class job of one video in a single call.  Plain C ABI, loaded with ctypes by libs/utils/nms_native.py.
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

#include "nms_common.h"

namespace {

// Soft-NMS of one set of candidates, one pick at a time.  Position i takes the first strict maximum of positions i..end
// (swapped in); the others decay; a candidate below min_score is overwritten by the last one (SPEC 43).
class SoftPicker {
  public:
    // `index` (count) names the candidates, in input order.
    SoftPicker(const float* segments, const float* scores, const int64_t* index, int64_t count, int method, float threshold,
               float sigma, float min_score)
        : method_(method), threshold_(threshold), sigma_(sigma), min_score_(min_score), start_(count), end_(count), score_(count),
          iou_(count), index_(index, index + count), live_(count) {
        for (int64_t j = 0; j < count; ++j) {
            start_[j] = segments[2 * index[j]];
            end_[j] = segments[2 * index[j] + 1];
            score_[j] = scores[index[j]];
        }
        select();
    }

    bool empty() const { return at_ >= live_; }
    float score() const { return score_[at_]; }
    int64_t index() const { return index_[at_]; }

    // Suppress the others by the current pick and select the next one.
    void advance() {
        decay();
        remove_low();
        ++at_;
        select();
    }

  private:
    void select() {
        if (empty()) return;
        int64_t best = at_;
        for (int64_t j = at_ + 1; j < live_; ++j)
            if (score_[j] > score_[best]) best = j;
        std::swap(start_[at_], start_[best]);
        std::swap(end_[at_], end_[best]);
        std::swap(score_[at_], score_[best]);
        std::swap(index_[at_], index_[best]);
    }

    void decay() {
        const float s = start_[at_], e = end_[at_];
        const float* start = start_.data();
        const float* end = end_.data();
        float* iou = iou_.data();
        for (int64_t j = at_ + 1; j < live_; ++j) iou[j] = tal_iou(s, e, start[j], end[j]);
        for (int64_t j = at_ + 1; j < live_; ++j)  // most candidates do not touch the pick: no exponential for those
            if (iou[j] > 0.0f || method_ != TAL_GAUSSIAN) score_[j] *= tal_weight(method_, iou[j], threshold_, sigma_);
    }

    // Every candidate decays exactly once per round wherever it stands, so removal may follow in a pass of its own.
    void remove_low() {
        for (int64_t j = at_ + 1; j < live_;) {
            if (!(score_[j] < min_score_)) {
                ++j;
                continue;
            }
            --live_;
            start_[j] = start_[live_];
            end_[j] = end_[live_];
            score_[j] = score_[live_];
            index_[j] = index_[live_];
        }
    }

    int method_;
    float threshold_, sigma_, min_score_;
    std::vector<float> start_, end_, score_, iou_;
    std::vector<int64_t> index_;
    int64_t at_ = 0, live_;
};

struct Pick {
    int64_t index;
    float score;
    int64_t group;
};

// Candidate indices ordered by class (ascending), input order inside; `begin` gets the first position of each class and the end.
void group_by_label(const int64_t* labels, int64_t n, bool multiclass, std::vector<int64_t>& order, std::vector<int64_t>& begin) {
    order.resize(n);
    std::iota(order.begin(), order.end(), int64_t{0});
    if (multiclass) std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return labels[a] < labels[b]; });
    begin.assign(1, 0);
    for (int64_t j = 1; j <= n; ++j)
        if (j == n || (multiclass && labels[order[j]] != labels[order[j - 1]])) begin.push_back(j);
}

// The best `limit` soft-NMS picks of all classes.  Scores are >= 0 and weights in [0, 1], so the picks of a class never rise:
// taking the best current pick of any class (lowest class first on ties) gives the order of a stable sort of all picks,
// and the picks after `limit` need not be computed.
void soft_groups(const float* segments, const float* scores, const std::vector<int64_t>& order, const std::vector<int64_t>& begin,
                 float threshold, float sigma, float min_score, int64_t limit, std::vector<Pick>& picks) {
    const int64_t groups = static_cast<int64_t>(begin.size()) - 1;
    std::vector<SoftPicker> pickers;
    pickers.reserve(groups);
    const auto later = [&](int64_t a, int64_t b) {
        return pickers[a].score() != pickers[b].score() ? pickers[a].score() < pickers[b].score() : a > b;
    };
    std::priority_queue<int64_t, std::vector<int64_t>, decltype(later)> best(later);
    for (int64_t g = 0; g < groups; ++g) {
        pickers.emplace_back(segments, scores, order.data() + begin[g], begin[g + 1] - begin[g], TAL_GAUSSIAN, threshold, sigma,
                             min_score);
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
              float* out) {
    double weight = 0.0, start = 0.0, end = 0.0;
    for (int64_t j = 0; j < n; ++j) {
        const int64_t i = index ? index[j] : j;
        const float w = tal_vote_weight(tal_vote_iou(s, e, segments[2 * i], segments[2 * i + 1]), scores[i], threshold);
        if (w == 0.0f) continue;
        weight += w;
        start += static_cast<double>(w) * segments[2 * i];
        end += static_cast<double>(w) * segments[2 * i + 1];
    }
    const bool any = weight != 0.0;
    out[0] = any ? static_cast<float>(start / weight) : std::numeric_limits<float>::quiet_NaN();
    out[1] = any ? static_cast<float>(end / weight) : std::numeric_limits<float>::quiet_NaN();
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
        SoftPicker picker(segments, scores, order.data(), n, method, threshold, sigma, min_score);
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
                      float* out) {
    for (int64_t k = 0; k < count; ++k)
        vote_one(kept[2 * k], kept[2 * k + 1], segments, scores, nullptr, n, threshold, out + 2 * k);
}

// NMS of one video: per class or over all labels, capped at `limit`, best score first.  Outputs hold min(n, limit) rows.
// `soft` 1: gaussian soft-NMS (scores must be >= 0); 0: hard, after dropping scores <= min_score.  `vote` 0: no voting, 1: among
// all candidates with their input scores, 2: among those of the pick's class; a pick without voters keeps its boundaries.
TAL_API int64_t tal_batched_nms(const float* segments, const float* scores, const int64_t* labels, int64_t n, int soft,
                                float threshold, float min_score, int64_t limit, float sigma, int multiclass, int vote,
                                float vote_threshold, float* out_segments, float* out_scores, int64_t* out_labels) {
    return guarded([&]() -> int64_t {
        std::vector<int64_t> order, begin, high, high_begin;
        std::vector<Pick> picks;
        if (n == 0) return 0;
        group_by_label(labels, n, multiclass != 0, order, begin);
        picks.reserve(std::min(n, limit));
        if (soft) {
            soft_groups(segments, scores, order, begin, threshold, sigma, min_score, limit, picks);
        } else {
            high_begin.push_back(0);  // groups stay aligned with `begin`, some may be empty
            for (size_t g = 0; g + 1 < begin.size(); ++g) {
                for (int64_t j = begin[g]; j < begin[g + 1]; ++j)
                    if (scores[order[j]] > min_score) high.push_back(order[j]);
                high_begin.push_back(static_cast<int64_t>(high.size()));
            }
            hard_groups(segments, scores, high, high_begin, threshold, limit, picks);
        }
        for (size_t i = 0; i < picks.size(); ++i) {
            const float* own = segments + 2 * picks[i].index;
            float* out = out_segments + 2 * i;
            if (vote) {
                const int64_t first = vote == 2 ? begin[picks[i].group] : 0, last = vote == 2 ? begin[picks[i].group + 1] : n;
                vote_one(own[0], own[1], segments, scores, vote == 2 ? order.data() + first : nullptr, last - first, vote_threshold,
                         out);
            }
            if (!vote || out[0] != out[0] || out[1] != out[1]) {
                out[0] = own[0];
                out[1] = own[1];
            }
            out_scores[i] = picks[i].score;
            out_labels[i] = labels[picks[i].index];
        }
        return static_cast<int64_t>(picks.size());
    });
}
