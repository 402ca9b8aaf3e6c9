// The scoring head on a CPU: logits folded while they are in the first cache. Compiled by cpu.py at first use.
//
// In a block of logits, words are rows and tokens are columns. A vector then holds one logit of each of several tokens,
// and no sum runs across a vector.

#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <utility>
#include <vector>

namespace {

using Vec = at::vec::Vectorized<float>;
using at::BFloat16;
using at::native::cpublas::brgemm;
using at::native::cpublas::brgemm_release;
using at::vec::maximum;

constexpr int64_t WORDS = 128;        // rows of a block
constexpr int64_t TOKENS = 64;        // columns of a block; TOKENS in cpu.py
constexpr int64_t SUPERBLOCK = 512;   // tokens whose packed states stay in the second cache while words pass by
constexpr int64_t FIELDS = 7;         // of Sums in sums.py, in its order
constexpr float FLOOR = -80.0f;       // of projection.py
constexpr float LOWEST = std::numeric_limits<float>::lowest();
static_assert(TOKENS % Vec::size() == 0);

// logits = softcap * tanh(scale * (product + bias) / softcap)
struct Recipe {
  const float* bias;  // (V,) or null
  float scale;
  float softcap;  // 0 without one

  bool plain() const { return bias == nullptr && scale == 1.0f && softcap == 0.0f; }

  Vec logit(Vec product, int64_t word) const {
    Vec x = (bias == nullptr ? product : product + Vec(bias[word])) * Vec(scale);
    return softcap == 0.0f ? x : Vec(softcap) * (x / Vec(softcap)).tanh();
  }
};

// What is known of each token beforehand, (n,). Words before the target rank above it if their logit is at least `own`,
// words after it if theirs is at least `next`, the next larger number.
struct Tokens {
  const float* target;  // exact: no vocabulary has 2^24 words
  const float* own;
  const float* next;
};

// Folds `m` words from word `first` on into the sums (FIELDS, n) of the TOKENS tokens from token `p` on. The product
// has rows of `stride`; it may be the block, which holds the logits afterwards.
template <bool PLAIN, bool RANK>
void fold_block(
    const float* product, int64_t stride, float* block, int64_t first, int64_t m, int64_t p, int64_t n,
    const Recipe& recipe, const Tokens& tokens, float* sums) {
  const Vec one(1.0f), floor(FLOOR);
  for (int64_t column = 0; column < TOKENS; column += Vec::size()) {
    float* place = sums + p + column;
    const Vec before = Vec::loadu(place);
    Vec top = before;
    for (int64_t row = 0; row < m; row++) {
      Vec x = Vec::loadu(product + row * stride + column);
      if (!PLAIN) x = recipe.logit(x, first + row);
      if (!PLAIN || product != block) x.store(block + row * TOKENS + column);
      top = maximum(top, x);
    }
    const Vec finite = maximum(top, Vec(LOWEST));
    const Vec from = Vec::blendv(
        Vec::loadu(tokens.next + p + column), Vec::loadu(tokens.own + p + column),
        Vec::loadu(tokens.target + p + column) >= Vec(float(first)));
    // The sums of a block are made apart: added to a large sum one by one, improbable words would round to nothing.
    Vec s0(0.0f), s1(0.0f), s2(0.0f), above(0.0f);
    for (int64_t row = 0; row < m; row++) {
      const Vec x = Vec::loadu(block + row * TOKENS + column);
      const Vec z = maximum(x - finite, floor);
      const Vec e = z.exp_u20();
      const Vec ez = e * z;
      s0 = s0 + e;
      s1 = s1 + ez;
      s2 = at::vec::fmadd(ez, z, s2);
      if (RANK) above = above + ((x >= from) & one);
    }
    const Vec shift = maximum(before - finite, floor), decay = shift.exp_u20();
    const Vec old0 = Vec::loadu(place + n), old1 = Vec::loadu(place + 2 * n), old2 = Vec::loadu(place + 3 * n);
    top.store(place);
    (decay * old0 + s0).store(place + n);
    (decay * (old1 + shift * old0) + s1).store(place + 2 * n);
    (decay * (old2 + Vec(2.0f) * shift * old1 + shift * shift * old0) + s2).store(place + 3 * n);
    (Vec::loadu(place + 4 * n) + above).store(place + 4 * n);
  }
  for (int64_t token = 0; token < TOKENS; token++) {
    const float target = tokens.target[p + token] - float(first);
    if (target < 0 || target >= float(m)) continue;
    const float own = tokens.own[p + token], next = tokens.next[p + token];
    sums[6 * n + p + token] = block[int64_t(target) * TOKENS + token];
    if (!RANK) continue;
    // Here all words were taken for words before the target.
    for (int64_t row = int64_t(target); row < m; row++) {
      const float x = block[row * TOKENS + token];
      if (x >= own && !(x >= next)) sums[4 * n + p + token] -= 1.0f;
    }
  }
}

using FoldBlock = decltype(&fold_block<true, true>);

FoldBlock fold_for(bool plain, bool rank) {
  if (plain) return rank ? fold_block<true, true> : fold_block<true, false>;
  return rank ? fold_block<false, true> : fold_block<false, false>;
}

// The weight (V, H) in bfloat16, or in float32 with values that are bfloat16 numbers.
struct Weight {
  const void* data;
  bool is_float;
  int64_t stride;
  int64_t hidden;

  // Rows `first` to `first + m` in bfloat16, and the stride between them; `scratch` holds what has to be rounded.
  std::pair<const BFloat16*, int64_t> rows(int64_t first, int64_t m, std::vector<BFloat16>& scratch) const {
    if (!is_float) return {static_cast<const BFloat16*>(data) + first * stride, stride};
    scratch.resize(m * hidden);
    for (int64_t row = 0; row < m; row++) {
      const float* from = static_cast<const float*>(data) + (first + row) * stride;
      for (int64_t i = 0; i < hidden; i++) scratch[row * hidden + i] = BFloat16(from[i]);
    }
    return {scratch.data(), hidden};
  }
};

// The products (m, TOKENS) of rows with the states of one block of tokens, packed as (parts, H / 2, TOKENS, 2).
void multiply(
    const BFloat16* rows, int64_t stride, int64_t m, const BFloat16* packed, int64_t parts, int64_t hidden,
    float* block) {
  for (int64_t part = 0; part < parts; part++)
    brgemm(m, TOKENS, hidden, stride, TOKENS, TOKENS, part > 0, rows, packed + part * hidden * TOKENS, block);
}

// Runs `work(thread)` on threads; false where one of them failed.
template <typename Work>
bool on_threads(int64_t threads, const Work& work) {
  std::atomic<bool> good{true};
#pragma omp parallel num_threads(threads)
  {
    try {
      work(omp_get_thread_num(), omp_get_num_threads());
    } catch (...) {  // nothing may leave a parallel region
      good = false;
    }
  }
  return good;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// The sums (threads, FIELDS, n) of each thread's words, from the states `packed` (n / TOKENS, parts, H / 2, TOKENS, 2).
EXPORT bool fold_products(
    const BFloat16* packed, int64_t parts, const void* weight, bool is_float, int64_t stride, int64_t hidden,
    int64_t vocabulary, const float* bias, float scale, float softcap, const float* targets, const float* own,
    const float* next, bool rank, int64_t n, int64_t threads, float* sums) {
  const Recipe recipe{bias, scale, softcap};
  const Tokens tokens{targets, own, next};
  const Weight matrix{weight, is_float, stride, hidden};
  const FoldBlock fold = fold_for(recipe.plain(), rank);
  return on_threads(threads, [&](int64_t thread, int64_t team) {
    alignas(64) float block[WORDS * TOKENS];
    std::vector<BFloat16> scratch;
    float* part = sums + thread * FIELDS * n;
    const int64_t blocks = (vocabulary + WORDS - 1) / WORDS;
    for (int64_t from = 0; from < n; from += SUPERBLOCK) {
      for (int64_t b = blocks * thread / team; b < blocks * (thread + 1) / team; b++) {
        const int64_t first = b * WORDS, m = std::min(WORDS, vocabulary - first);
        const auto [rows, between] = matrix.rows(first, m, scratch);
        for (int64_t p = from; p < std::min(from + SUPERBLOCK, n); p += TOKENS) {
          multiply(rows, between, m, packed + p * parts * hidden, parts, hidden, block);
          fold(block, TOKENS, block, first, m, p, n, recipe, tokens, part);
        }
      }
    }
    brgemm_release();
  });
}

// Folds a tile of products (m, n) of the words from `first` on, row stride `stride`, into the sums (FIELDS, n).
EXPORT bool fold_tile(
    const float* product, int64_t stride, int64_t first, int64_t m, const float* bias, float scale, float softcap,
    const float* targets, const float* own, const float* next, bool rank, int64_t n, int64_t threads,
    float* sums) {
  const Recipe recipe{bias, scale, softcap};
  const Tokens tokens{targets, own, next};
  const FoldBlock fold = fold_for(recipe.plain(), rank);
  return on_threads(threads, [&](int64_t thread, int64_t team) {
    alignas(64) float block[WORDS * TOKENS];
    for (int64_t p = thread * TOKENS; p < n; p += team * TOKENS)
      for (int64_t row = 0; row < m; row += WORDS)
        fold(product + row * stride + p, stride, block, first + row, std::min(WORDS, m - row), p, n, recipe, tokens, sums);
  });
}

// Turns a tile of products (n, m) of the words from `first` on into their gradients, in place. That of a logit is
// e^z (constant + per_z z), and less `by_surprisal` for the target.
EXPORT bool gradient_tile(
    float* product, int64_t n, int64_t m, int64_t first, const float* bias, float scale, float softcap,
    const int64_t* targets, const float* top, const float* constant, const float* per_z, const float* by_surprisal,
    int64_t threads) {
  const Recipe plain{nullptr, scale, softcap};
  return on_threads(threads, [&](int64_t thread, int64_t team) {
    for (int64_t token = thread; token < n; token += team) {
      float* row = product + token * m;
      const Vec finite(std::max(top[token], LOWEST)), flat(constant[token]), slope(per_z[token]);
      const int64_t target = targets[token] - first;
      const bool here = target >= 0 && target < m;
      const float share = here ? by_surprisal[token] : 0.0f;
      for (int64_t i = 0; i < m; i += Vec::size()) {
        const int64_t size = std::min<int64_t>(Vec::size(), m - i);
        Vec x = Vec::loadu(row + i, size);
        if (bias != nullptr) x = x + Vec::loadu(bias + first + i, size);
        x = plain.logit(x, 0);
        const Vec z = maximum(x - finite, Vec(FLOOR));
        Vec gradient = z.exp_u20() * at::vec::fmadd(slope, z, flat);
        if (here && target >= i && target < i + size) {
          float values[Vec::size()];
          gradient.store(values);
          values[target - i] -= share;
          gradient = Vec::loadu(values);
        }
        if (softcap != 0.0f) {
          const Vec capped = x / Vec(softcap);
          gradient = gradient * (Vec(1.0f) - capped * capped);
        }
        (gradient * Vec(scale)).store(row + i, size);
      }
    }
  });
}
