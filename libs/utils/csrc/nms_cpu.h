// What the CPU parts share: loops that vectorise for the machine they run on, and threads over the videos of a batch.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

// One library for every x86: the loader picks the copy of a function that suits the processor.  Same IEEE operations, same bits.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define TAL_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define TAL_CLONES
#endif

// body(v) for every video, by up to `threads` threads; each v runs exactly once, so results do not depend on the threads.
// False when memory ran out.
template <typename Body>
bool for_each_video(int64_t videos, int threads, Body body) {
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    const auto work = [&] {
        try {
            for (int64_t v; (v = next++) < videos;) body(v);
        } catch (const std::bad_alloc&) {
            failed = true;
        }
    };
    std::vector<std::thread> helpers;
    try {
        for (int64_t i = 1; i < std::min<int64_t>(threads, videos); ++i) helpers.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads to be had: those at hand do the work
    } catch (const std::bad_alloc&) {
    }
    work();
    for (std::thread& helper : helpers) helper.join();
    return !failed;
}

// Moves the rows of the videos together: video v has counts[v] rows of `width` values from row room[v] on.
template <typename T>
void close_gaps(T* rows, int64_t width, const std::vector<int64_t>& room, const int64_t* counts) {
    T* to = rows;
    for (size_t v = 0; v + 1 < room.size(); ++v) {
        const T* from = rows + width * room[v];
        if (to != from) std::copy(from, from + width * counts[v], to);
        to += width * counts[v];
    }
}
