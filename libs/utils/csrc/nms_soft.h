// Soft-NMS of one set of candidates on the CPU, one pick at a time, in the selection order of SPEC 43.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "nms_common.h"
#include "nms_cpu.h"

// inter[j] = overlap of (s, e) with candidate j.
TAL_CLONES static void tal_overlaps(float s, float e, const float* start, const float* end, int64_t n, float* inter) {
    for (int64_t j = 0; j < n; ++j) inter[j] = tal_overlap(s, e, start[j], end[j]);
}

// weight[j] of candidate j, which overlaps with the pick (s, e) by inter[j].
TAL_CLONES static void tal_gaussians(float s, float e, const float* start, const float* end, const float* inter, int64_t n,
                                     float sigma, float* weight) {
    for (int64_t j = 0; j < n; ++j) {
        const float iou = tal_iou_of(inter[j], s, e, start[j], end[j]);
        weight[j] = tal_clamp(-(iou * iou) / sigma);
    }
    for (int64_t j = 0; j < n; ++j) weight[j] = tal_exp_of_clamped(weight[j]);  // a loop of its own: compilers vectorise it
}

// First position of the largest of score[0..n - 1], n > 0.
TAL_CLONES static int64_t tal_first_max(const float* score, int64_t n) {
    typedef float Lanes __attribute__((vector_size(64)));
    constexpr int LANES = 16;
    float best = score[0];
    int64_t j = 0;
    if (n >= LANES) {
        Lanes most, next;
        memcpy(&most, score, sizeof most);
        for (j = LANES; j + LANES <= n; j += LANES) {
            memcpy(&next, score + j, sizeof next);
            most = next > most ? next : most;
        }
        for (int k = 0; k < LANES; ++k) best = most[k] > best ? most[k] : best;
    }
    for (; j < n; ++j) best = score[j] > best ? score[j] : best;
    for (j = 0; score[j] != best;) ++j;
    return j;
}

// Working memory of one round, shared by the pickers of a video.
struct SoftScratch {
    explicit SoftScratch(int64_t n) : overlap(n), start(n), end(n), weight(n), touched(n), low(n) {}
    std::vector<float> overlap, start, end, weight;
    std::vector<int64_t> touched, low;
};

// Position i takes the first strict maximum of positions i..end (swapped in); the others decay; a candidate below min_score is
// overwritten by the last one.
class SoftPicker {
  public:
    // `index` (count) names the candidates, in input order; `scratch` has room for them.
    SoftPicker(const float* segments, const float* scores, const int64_t* index, int64_t count, int method, float threshold,
               float sigma, float min_score, SoftScratch& scratch)
        : method_(method), threshold_(threshold), sigma_(sigma), min_score_(min_score), start_(count), end_(count), score_(count),
          index_(index, index + count), live_(count), scratch_(&scratch) {
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
        const int64_t touched = decay();
        remove(at_ == 0 ? find_low(nullptr, live_ - 1) : find_low(scratch_->touched.data(), touched));
        ++at_;
        select();
    }

  private:
    void select() {
        if (empty()) return;
        const int64_t best = at_ + tal_first_max(score_.data() + at_, live_ - at_);
        std::swap(start_[at_], start_[best]);
        std::swap(end_[at_], end_[best]);
        std::swap(score_[at_], score_[best]);
        std::swap(index_[at_], index_[best]);
    }

    // Decay what the pick touches (gaussian: the rest keeps weight 1); how many positions scratch.touched lists, rising.
    int64_t decay() {
        const float s = start_[at_], e = end_[at_];
        const int64_t first = at_ + 1, rest = live_ - first;
        SoftScratch& room = *scratch_;
        tal_overlaps(s, e, start_.data() + first, end_.data() + first, rest, room.overlap.data());
        const float least = method_ == TAL_GAUSSIAN ? 0.0f : -1.0f;
        int64_t count = 0;
        for (int64_t j = 0; j < rest; ++j) {  // without a branch: overlaps come in no predictable order
            room.touched[count] = first + j;
            count += room.overlap[j] > least;
        }
        for (int64_t k = 0; k < count; ++k) {
            room.start[k] = start_[room.touched[k]];
            room.end[k] = end_[room.touched[k]];
            room.overlap[k] = room.overlap[room.touched[k] - first];
        }
        if (method_ == TAL_GAUSSIAN) {
            tal_gaussians(s, e, room.start.data(), room.end.data(), room.overlap.data(), count, sigma_, room.weight.data());
        } else {
            for (int64_t k = 0; k < count; ++k)
                room.weight[k] = tal_weight(method_, tal_iou(s, e, room.start[k], room.end[k]), threshold_, sigma_);
        }
        for (int64_t k = 0; k < count; ++k) score_[room.touched[k]] *= room.weight[k];
        return count;
    }

    // Which of the `count` positions listed (null: of those after the pick) fell below min_score, into scratch.low, rising.
    // After the first round only what decays can do so.
    int64_t find_low(const int64_t* listed, int64_t count) {
        int64_t found = 0;
        for (int64_t k = 0; k < count; ++k) {
            const int64_t j = listed ? listed[k] : at_ + 1 + k;
            scratch_->low[found] = j;
            found += score_[j] < min_score_;
        }
        return found;
    }

    // Every candidate decays exactly once per round wherever it stands, so removal may follow in a pass of its own.
    void remove(int64_t found) {
        for (int64_t k = 0; k < found && scratch_->low[k] < live_; ++k) {
            const int64_t j = scratch_->low[k];
            do --live_;
            while (live_ > j && score_[live_] < min_score_);
            start_[j] = start_[live_];
            end_[j] = end_[live_];
            score_[j] = score_[live_];
            index_[j] = index_[live_];
        }
    }

    int method_;
    float threshold_, sigma_, min_score_;
    std::vector<float> start_, end_, score_;
    std::vector<int64_t> index_;
    int64_t at_ = 0, live_;
    SoftScratch* scratch_;
};
