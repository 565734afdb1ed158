// What takes longest in training on a CPU beside large products. First, causal attention and its gradients: one task per sequence and key/value head, whose scores stay in a
// core's cache. Products go to oneDNN's small matrix products (AMX, AVX512-BF16 or AVX-512, whatever there is); between them
// only what a query sees is visited. Bounded scores (QK norm) need no maximum: probabilities are 2^(score - log2 of the sum).
// Second, what cross-entropy does to softcapped logits, in one pass.
// Shapes: B sequences, T tokens, H query heads, K key/value heads, D head dimension.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <type_traits>
#include <vector>

// A call left in a loop would keep the loop from becoming vectors.
#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace {

namespace blas = at::native::cpublas;

constexpr int64_t ROWS = 64;  // queries (forward) or keys (backward) of a block
constexpr int64_t COLUMNS = 512;  // keys or queries that a block is multiplied with at a time
constexpr int64_t AHEAD = 12;  // rows
constexpr int64_t MAX_DIM = 512;
constexpr int64_t GRAIN = 32;  // what AMX likes lengths to be multiples of; the rest is zeros

// Rows of a right-hand factor that adjoin element by element in its packed form: (rows / PAIR, columns, PAIR).
template <typename T> constexpr int64_t PAIR = 4 / sizeof(T);

ALWAYS_INLINE int64_t padded(int64_t n) { return (n + GRAIN - 1) / GRAIN * GRAIN; }

ALWAYS_INLINE float widen(float x) { return x; }
ALWAYS_INLINE float widen(at::BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.x) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// Stores a finite number, to the nearest, ties to even, and returns what was stored.
ALWAYS_INLINE float store(float* to, float x) { return *to = x; }
ALWAYS_INLINE float store(at::BFloat16* to, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  to->x = static_cast<uint16_t>(bits);
  bits <<= 16;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// 2^x to some 2e-7 for |x| <= 126 (beyond: as there), as arithmetic that a compiler turns into vectors.
ALWAYS_INLINE float power_of_2(float x) {
  x = std::clamp(x, -126.0f, 126.0f);
  const float n = std::nearbyint(x), f = (x - n) * 0.69314718f;
  const float power = 1 + f * (1 + f * (0.5f + f * (0.16666667f + f * (0.041666667f + f * (0.0083333333f + f * 0.0013888889f)))));
  uint32_t bits;
  std::memcpy(&bits, &power, sizeof bits);
  bits += static_cast<uint32_t>(static_cast<int32_t>(n)) << 23;
  float scaled;
  std::memcpy(&scaled, &bits, sizeof scaled);
  return scaled;
}

// 1 where from <= i < to, else 0.
ALWAYS_INLINE float seen(int32_t i, int32_t from, int32_t to) { return static_cast<float>((i >= from) & (i < to)); }

// C (M, N) = A (M, K) B (K, N), or added to it. B is packed.
template <typename T>
void product(int64_t M, int64_t N, int64_t K, const T* A, int64_t lda, const T* B, int64_t ldb, float* C, int64_t ldc, bool add) {
  blas::brgemm(M, N, K, lda, ldb, ldc, add, A, B, C, PAIR<T> == 2);
}

// One head's tokens (T, D), rows `stride` elements apart.
template <typename T> struct Head {
  T* data;
  int64_t stride;
  T* row(int64_t t) const { return data + t * stride; }
  // Asks for a row that is read some rows later: they are too far apart for the processor to foresee it.
  void prefetch(int64_t t, int64_t D) const {
    for (int64_t d = 0; d < D; d += 64 / sizeof(T)) __builtin_prefetch(row(t + AHEAD) + d);
  }
};

template <typename T> Head<T> head(const at::Tensor& x, int64_t b, int64_t h) {
  return {x.data_ptr<T>() + b * x.stride(0) + h * x.stride(2), x.stride(1)};
}

// Rows 2r and 2r + 1 of 16-bit numbers as row r of pairs.
ALWAYS_INLINE void interleave(const at::BFloat16* even, const at::BFloat16* odd, int64_t count, at::BFloat16* out) {
  const uint16_t *low = reinterpret_cast<const uint16_t*>(even), *high = reinterpret_cast<const uint16_t*>(odd);
  uint32_t* words = reinterpret_cast<uint32_t*>(out);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) words[i] = low[i] | static_cast<uint32_t>(high[i]) << 16;
}

// (T, D) as the right-hand factor (T, D): out (padded T / PAIR, D, PAIR).
template <typename T> void pack(Head<T> x, int64_t length, int64_t D, T* out) {
  T zeros[MAX_DIM] = {};
  for (int64_t t = 0; t < padded(length); t += PAIR<T>) {
    x.prefetch(t, D), x.prefetch(t + PAIR<T> - 1, D);
    if constexpr (PAIR<T> == 2)
      interleave(t < length ? x.row(t) : zeros, t + 1 < length ? x.row(t + 1) : zeros, D, out + t * D);
    else
      std::copy_n(t < length ? x.row(t) : zeros, D, out + t * D);
  }
}

// (R, C) as (C, R), in tiles that fit the registers: C and R are multiples of 16, of the source `rows` are there.
template <typename WORD> void transpose(const WORD* x, int64_t stride, int64_t rows, int64_t R, int64_t C, WORD* out) {
  constexpr int64_t TILE = 16;
  WORD tile[TILE][TILE];
  for (int64_t r = 0; r < R; r += TILE)
    for (int64_t c = 0; c < C; c += TILE) {
      for (int64_t i = 0; i < TILE; ++i)
        if (r + i < rows) std::memcpy(tile[i], x + (r + i) * stride + c, sizeof tile[i]);
        else std::memset(tile[i], 0, sizeof tile[i]);
      for (int64_t j = 0; j < TILE; ++j)
        for (int64_t i = 0; i < TILE; ++i) out[(c + j) * R + r + i] = tile[i][j];
    }
}

// (T, D) as the right-hand factor (D, T): out (D / PAIR, padded T, PAIR).
template <typename T> void pack_transposed(Head<T> x, int64_t length, int64_t D, T* out) {
  transpose(reinterpret_cast<const uint32_t*>(x.data), x.stride / PAIR<T>, length, padded(length), D / PAIR<T>,
            reinterpret_cast<uint32_t*>(out));
}

// Memory of a thread, kept from call to call.
class Scratch {
 public:
  template <typename T> T* take(int64_t count) {
    const size_t start = used_;
    used_ += (count * sizeof(T) + 63) / 64 * 64;
    TORCH_INTERNAL_ASSERT(used_ <= memory().size());
    return reinterpret_cast<T*>(memory().data() + start);
  }
  explicit Scratch(size_t bytes) {
    if (memory().size() < bytes) memory().resize(bytes);
  }

 private:
  static std::vector<char>& memory() {
    thread_local std::vector<char> memory;
    return memory;
  }
  size_t used_ = 0;
};

// Rotary embedding and RMSNorm of a head's queries or keys: channel d pairs with d + D / 2; the norm is not changed by rotating.
template <typename T> class Rotation {
 public:
  const T *cos, *sin;  // (T, D / 2)
  int64_t length, D;
  float eps;

  // out (T, D) and each row's factor 1 / rms.
  void apply(Head<T> x, T* out, float* inverses) const {
    D == 64 ? apply<64>(x, out, inverses) : D == 128 ? apply<128>(x, out, inverses) : apply<0>(x, out, inverses);
  }

  // From gradients (T, D) by what `apply` gave as y (T, D): the gradient r (g - y mean(y g)), rotated back, into out.
  void backward(const float* grads, const T* y, const float* inverses, Head<T> out) const {
    D == 64    ? backward<64>(grads, y, inverses, out)
    : D == 128 ? backward<128>(grads, y, inverses, out)
               : backward<0>(grads, y, inverses, out);
  }

 private:
  // DIM is D where it is known early, or 0.
  template <int64_t DIM> void apply(Head<T> x, T* out, float* inverses) const {
    const int64_t D = DIM > 0 ? DIM : this->D, half = D / 2;
    for (int64_t t = 0; t < length; ++t) {
      const T *row = x.row(t), *c = cos + t * half, *s = sin + t * half;
      x.prefetch(t, D);
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t d = 0; d < D; ++d) sum += widen(row[d]) * widen(row[d]);
      const float inverse = inverses[t] = 1 / std::sqrt(sum / D + eps);
#pragma omp simd
      for (int64_t d = 0; d < half; ++d) {
        const float low = widen(row[d]) * inverse, high = widen(row[d + half]) * inverse;
        store(out + t * D + d, low * widen(c[d]) + high * widen(s[d]));
        store(out + t * D + d + half, high * widen(c[d]) - low * widen(s[d]));
      }
    }
  }

  template <int64_t DIM> void backward(const float* grads, const T* y, const float* inverses, Head<T> out) const {
    const int64_t D = DIM > 0 ? DIM : this->D, half = D / 2;
    for (int64_t t = 0; t < length; ++t) {
      const float* g = grads + t * D;
      const T *row = y + t * D, *c = cos + t * half, *s = sin + t * half;
      T* to = out.row(t);
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t d = 0; d < D; ++d) sum += g[d] * widen(row[d]);
      const float mean = sum / D, inverse = inverses[t];
#pragma omp simd
      for (int64_t d = 0; d < half; ++d) {
        const float low = (g[d] - mean * widen(row[d])) * inverse;
        const float high = (g[d + half] - mean * widen(row[d + half])) * inverse;
        store(to + d, low * widen(c[d]) - high * widen(s[d]));
        store(to + d + half, low * widen(s[d]) + high * widen(c[d]));
      }
    }
  }
};

// What each token sees, all of it contiguous: keys first[p] to p, seen by queries up to last[p]. Both never decrease.
struct Sight {
  std::vector<int64_t> first, last;
  Sight(int64_t length, int64_t window, const int64_t* starts) : first(length), last(length) {
    for (int64_t p = 0; p < length; ++p) first[p] = std::max(p - window, starts ? starts[p] : 0);
    for (int64_t p = length - 1, query = length - 1; p >= 0; --p) {
      while (first[query] > p) --query;
      last[p] = query;
    }
  }
};

struct Sizes {
  int64_t B, T, H, K, D, window;
  float scale, eps;
  const int64_t* starts;  // (B, T) or none
  const void *cos, *sin;
  template <typename T> Rotation<T> rotation() const {
    return {static_cast<const T*>(cos), static_cast<const T*>(sin), this->T, D, eps};
  }
  Sight sight(int64_t b) const { return {T, window, starts ? starts + b * T : nullptr}; }
};

// qk (B, T, H + K, D), v (B, T, K, D), y (B, T, H, D); log_sums (B, H, T): log2 of each query's sum of exponentials.
template <typename T>
void forward_task(const Sizes& z, int64_t b, int64_t kv, const at::Tensor& qk, const at::Tensor& v, at::Tensor& y,
                  at::Tensor& log_sums) {
  const int64_t D = z.D, columns = padded(z.T);
  Scratch scratch(3 * columns * D * sizeof(T) + ROWS * COLUMNS * 8 + ROWS * D * 4 + columns * 4 + 4096);
  T *normed = scratch.take<T>(columns * D), *keys = scratch.take<T>(D * columns), *values = scratch.take<T>(columns * D), *p = scratch.take<T>(ROWS * COLUMNS);
  float *s = scratch.take<float>(ROWS * COLUMNS), *o = scratch.take<float>(ROWS * D), *inverses = scratch.take<float>(columns), sums[ROWS];
  const Rotation<T> rotation = z.rotation<T>();
  const Head<T> queries = {normed, D};
  rotation.apply(head<T>(qk, b, z.H + kv), normed, inverses);
  pack_transposed(queries, z.T, D, keys);
  pack(head<T>(v, b, kv), z.T, D, values);
  const Sight sight = z.sight(b);
  const float factor = z.scale * 1.44269504f;
  for (int64_t h = kv * (z.H / z.K); h < (kv + 1) * (z.H / z.K); ++h) {
    const Head<T> out = head<T>(y, b, h);
    rotation.apply(head<T>(qk, b, h), normed, inverses);
    float* logs = log_sums.data_ptr<float>() + (b * z.H + h) * z.T;
    for (int64_t i = 0; i < z.T; i += ROWS) {
      const int64_t rows = std::min(ROWS, z.T - i), start = sight.first[i] / GRAIN * GRAIN, end = padded(i + rows);
      std::fill(sums, sums + ROWS, 0.0f);
      for (int64_t c = start; c < end; c += COLUMNS) {
        const int64_t n = std::min(COLUMNS, end - c);
        product(rows, n, D, queries.row(i), queries.stride, keys + c * PAIR<T>, columns, s, COLUMNS, false);
        for (int64_t r = 0; r < rows; ++r) {
          const int32_t from = std::clamp(sight.first[i + r] - c, int64_t(0), n);
          const int32_t to = std::clamp<int64_t>(i + r + 1 - c, from, n);
          const float* scores = s + r * COLUMNS;
          T* row = p + r * COLUMNS;
          float sum = 0;
          std::fill(row, row + from, T(0));
#pragma omp simd reduction(+ : sum)
          for (int32_t m = from / GRAIN * GRAIN; m < padded(to); ++m) {
            sum += store(row + m, power_of_2(scores[m] * factor) * seen(m, from, to));
          }
          std::fill(row + to, row + n, T(0));
          sums[r] += sum;
        }
        product(rows, D, n, p, COLUMNS, values + c * D, D, o, D, c > start);
      }
      for (int64_t r = 0; r < rows; ++r) {
        const float inverse = 1 / sums[r];
        logs[i + r] = std::log2(sums[r]);
        for (int64_t d = 0; d < D; ++d) store(out.row(i + r) + d, o[r * D + d] * inverse);
      }
    }
  }
}

// The gradients by qk and v, given those by y.
template <typename T>
void backward_task(const Sizes& z, int64_t b, int64_t kv, const at::Tensor& grad, const at::Tensor& qk, const at::Tensor& v,
                   const at::Tensor& y, const at::Tensor& log_sums, at::Tensor& dqk, at::Tensor& dv) {
  const int64_t D = z.D, columns = padded(z.T), size = columns * D;
  Scratch scratch(7 * size * sizeof(T) + 4 * size * 4 + ROWS * COLUMNS * (8 + 3 * sizeof(T)) + columns * 16 + 4096);
  T *qt = scratch.take<T>(size), *gt = scratch.take<T>(size), *qn = scratch.take<T>(size), *gn = scratch.take<T>(size);
  T *kt = scratch.take<T>(size), *p = scratch.take<T>(ROWS * COLUMNS), *ds = scratch.take<T>(ROWS * COLUMNS);
  T* pairs = scratch.take<T>(ROWS * COLUMNS);
  float *s = scratch.take<float>(ROWS * COLUMNS), *dp = scratch.take<float>(ROWS * COLUMNS), *delta = scratch.take<float>(columns);
  float* logs = scratch.take<float>(columns);
  float *dq_DT = scratch.take<float>(size), *dq_TD = scratch.take<float>(size), *dk_TD = scratch.take<float>(size), *dv_TD = scratch.take<float>(size);
  float *q_inverses = scratch.take<float>(columns), *k_inverses = scratch.take<float>(columns);
  const Head<T> queries = {scratch.take<T>(size), D}, keys = {scratch.take<T>(size), D}, values = head<T>(v, b, kv);
  const Rotation<T> rotation = z.rotation<T>();
  rotation.apply(head<T>(qk, b, z.H + kv), keys.data, k_inverses);
  transpose<T>(keys.data, keys.stride, z.T, columns, D, kt);
  const Sight sight = z.sight(b);
  const float factor = z.scale * 1.44269504f;
  for (int64_t h = kv * (z.H / z.K), first = h; h < (kv + 1) * (z.H / z.K); ++h) {
    const Head<T> grads = head<T>(grad, b, h), out = head<T>(y, b, h);
    rotation.apply(head<T>(qk, b, h), queries.data, q_inverses);
    std::copy_n(log_sums.data_ptr<float>() + (b * z.H + h) * z.T, z.T, logs);
    pack(queries, z.T, D, qn), pack(grads, z.T, D, gn);
    pack_transposed(queries, z.T, D, qt), pack_transposed(grads, z.T, D, gt);
    for (int64_t t = 0; t < z.T; ++t) {
      out.prefetch(t, D);
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t d = 0; d < D; ++d) sum += widen(grads.row(t)[d]) * widen(out.row(t)[d]);
      delta[t] = sum;
    }
    std::fill(dq_DT, dq_DT + size, 0.0f);
    for (int64_t j = 0; j < z.T; j += ROWS) {
      const int64_t rows = std::min(ROWS, z.T - j), end = padded(sight.last[j + rows - 1] + 1);
      for (int64_t c = j; c < end; c += COLUMNS) {
        const int64_t n = std::min(COLUMNS, end - c);
        product(rows, n, D, keys.row(j), keys.stride, qt + c * PAIR<T>, columns, s, COLUMNS, false);
        product(rows, n, D, values.row(j), values.stride, gt + c * PAIR<T>, columns, dp, COLUMNS, false);
        for (int64_t r = 0; r < padded(rows); ++r) {
          const int32_t from = r < rows ? std::clamp(j + r - c, int64_t(0), n) : n;
          const int32_t to = r < rows ? std::clamp<int64_t>(sight.last[j + r] + 1 - c, from, n) : n;
          const float *scores = s + r * COLUMNS, *slopes = dp + r * COLUMNS;
          T *p_row = p + r * COLUMNS, *ds_row = ds + r * COLUMNS;
          std::fill(p_row, p_row + from, T(0)), std::fill(ds_row, ds_row + from, T(0));
          const float *lse = logs + c, *means = delta + c;
#pragma omp simd
          for (int32_t m = from / GRAIN * GRAIN; m < padded(to); ++m) {
            const float x = power_of_2(scores[m] * factor - lse[m]) * seen(m, from, to);
            store(p_row + m, x);
            store(ds_row + m, x * (slopes[m] - means[m]) * z.scale);
          }
          std::fill(p_row + to, p_row + n, T(0)), std::fill(ds_row + to, ds_row + n, T(0));
        }
        const bool add = h > first || c > j;
        product(rows, D, n, p, COLUMNS, gn + c * D, D, dv_TD + j * D, D, add);
        product(rows, D, n, ds, COLUMNS, qn + c * D, D, dk_TD + j * D, D, add);
        if constexpr (PAIR<T> == 2)
          for (int64_t r = 0; r < padded(rows); r += 2)
            interleave(ds + r * COLUMNS, ds + (r + 1) * COLUMNS, n, pairs + r * COLUMNS);
        product(D, n, padded(rows), kt + j, columns, PAIR<T> == 2 ? pairs : ds, COLUMNS, dq_DT + c, columns, true);
      }
    }
    transpose(dq_DT, columns, D, D, columns, dq_TD);
    rotation.backward(dq_TD, queries.data, q_inverses, head<T>(dqk, b, h));
  }
  rotation.backward(dk_TD, keys.data, k_inverses, head<T>(dqk, b, z.H + kv));
  const Head<T> dvs = head<T>(dv, b, kv);
  for (int64_t t = 0; t < z.T; ++t)
    for (int64_t d = 0; d < D; ++d) store(dvs.row(t) + d, dv_TD[t * D + d]);
}

template <typename Task> void run(const Sizes& z, bool bf16, const Task& task) {
  at::parallel_for(0, z.B * z.K, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(i / z.K, i % z.K);
    blas::brgemm_release(bf16);
  });
}

Sizes sizes(const at::Tensor& qk, const at::Tensor& v, const at::Tensor& cos, const at::Tensor& sin,
            const std::optional<at::Tensor>& starts, int64_t window, double scale, double eps) {
  const int64_t B = qk.size(0), T = qk.size(1), K = v.size(2), D = qk.size(3);
  TORCH_CHECK(D % GRAIN == 0 && D <= MAX_DIM, "the head dimension must be a multiple of 32 up to 512, not ", D);
  TORCH_CHECK(!starts || (starts->is_contiguous() && starts->scalar_type() == at::kLong), "starts must be contiguous int64");
  for (const at::Tensor& x : {cos, sin})
    TORCH_CHECK(x.is_contiguous() && x.scalar_type() == qk.scalar_type() && x.numel() == T * D / 2, "cos and sin must be (T, D / 2)");
  return {B, T, qk.size(2) - K, K, D, window, static_cast<float>(scale), static_cast<float>(eps),
          starts ? starts->data_ptr<int64_t>() : nullptr, cos.data_ptr(), sin.data_ptr()};
}

at::Tensor rows_contiguous(const at::Tensor& x) { return x.stride(3) == 1 ? x : x.contiguous(); }

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& qk_, const at::Tensor& v_, const at::Tensor& cos, const at::Tensor& sin,
                                           const std::optional<at::Tensor>& starts, int64_t window, double scale, double eps) {
  const at::Tensor qk = rows_contiguous(qk_), v = rows_contiguous(v_);
  const Sizes z = sizes(qk, v, cos, sin, starts, window, scale, eps);
  at::Tensor y = at::empty({z.B, z.T, z.H, z.D}, v.options());
  at::Tensor log_sums = at::empty({z.B, z.H, z.T}, v.options().dtype(at::kFloat));
  const bool bf16 = v.scalar_type() == at::kBFloat16;
  run(z, bf16, [&](int64_t b, int64_t kv) {
    bf16 ? forward_task<at::BFloat16>(z, b, kv, qk, v, y, log_sums) : forward_task<float>(z, b, kv, qk, v, y, log_sums);
  });
  return {y, log_sums};
}

std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& grad_, const at::Tensor& qk_, const at::Tensor& v_, const at::Tensor& cos,
                                            const at::Tensor& sin, const std::optional<at::Tensor>& starts, const at::Tensor& y,
                                            const at::Tensor& log_sums, int64_t window, double scale, double eps) {
  const at::Tensor grad = rows_contiguous(grad_), qk = rows_contiguous(qk_), v = rows_contiguous(v_);
  const Sizes z = sizes(qk, v, cos, sin, starts, window, scale, eps);
  at::Tensor dqk = at::empty({z.B, z.T, z.H + z.K, z.D}, v.options()), dv = at::empty({z.B, z.T, z.K, z.D}, v.options());
  const bool bf16 = v.scalar_type() == at::kBFloat16;
  run(z, bf16, [&](int64_t b, int64_t kv) {
    bf16 ? backward_task<at::BFloat16>(z, b, kv, grad, qk, v, y, log_sums, dqk, dv)
         : backward_task<float>(z, b, kv, grad, qk, v, y, log_sums, dqk, dv);
  });
  return {dqk, dv};
}

template <typename T>
void loss_row(T* row, int64_t V, int64_t target, float softcap, float* sum, float* capped) {
  const float to_power = softcap * 1.44269504f, inner = -2.0f * 1.44269504f / softcap, logit = widen(row[target]);
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < V; ++i) {
    const float u = 1 / (1 + power_of_2(inner * widen(row[i])));  // tanh(x / softcap) is 2 u - 1
    const float e = power_of_2(to_power * (2 * u - 1));
    total += e;
    store(row + i, e * 4 * u * (1 - u));
  }
  const float t = std::tanh(logit / softcap);
  store(row + target, (std::exp(softcap * t) - total) * (1 - t * t));
  *sum = total, *capped = softcap * t;
}

// Logits (N, V) become the gradients of each row's cross-entropy, times the row's sum of e^capped: e^capped times the slope
// of the cap, at the target (N,) less that sum. Returns the sums and the targets' capped logits, both (N,) in float32.
std::tuple<at::Tensor, at::Tensor> loss_rows_(at::Tensor logits, const at::Tensor& targets, double softcap) {
  const int64_t N = logits.size(0), V = logits.size(1);
  TORCH_CHECK(logits.stride(1) == 1 && targets.is_contiguous(), "rows must be contiguous");
  at::Tensor sums = at::empty({N}, logits.options().dtype(at::kFloat)), capped = at::empty_like(sums);
  const int64_t* target = targets.data_ptr<int64_t>();
  at::parallel_for(0, N, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float *sum = sums.data_ptr<float>() + i, *at_target = capped.data_ptr<float>() + i;
      if (logits.scalar_type() == at::kBFloat16)
        loss_row(logits.data_ptr<at::BFloat16>() + i * logits.stride(0), V, target[i], softcap, sum, at_target);
      else
        loss_row(logits.data_ptr<float>() + i * logits.stride(0), V, target[i], softcap, sum, at_target);
    }
  });
  return {sums, capped};
}

}  // namespace

TORCH_LIBRARY(nanochat_model, library) {
  library.def(
      "attention(Tensor qk, Tensor v, Tensor cos, Tensor sin, Tensor? starts, int window, float scale, float eps) -> "
      "(Tensor, Tensor)");
  library.def(
      "attention_backward(Tensor grad, Tensor qk, Tensor v, Tensor cos, Tensor sin, Tensor? starts, Tensor y, Tensor log_sums, "
      "int window, float scale, float eps) -> (Tensor, Tensor)");
  library.def("loss_rows_(Tensor(a!) logits, Tensor targets, float softcap) -> (Tensor, Tensor)");
  library.def("has_fast_products(ScalarType dtype) -> bool", [](at::ScalarType dtype) { return blas::could_pack(dtype); });
}

TORCH_LIBRARY_IMPL(nanochat_model, CPU, library) {
  library.impl("attention", &forward);
  library.impl("attention_backward", &backward);
  library.impl("loss_rows_", &loss_rows_);
}
