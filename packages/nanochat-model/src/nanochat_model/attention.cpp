// Causal attention and its gradients for training on a CPU: one task per sequence and key/value head, whose scores stay in a
// core's cache. Products go to oneDNN's small matrix products (AMX, AVX512-BF16 or AVX-512, whatever there is); between them
// only what a query sees is visited. Bounded scores (QK norm) need no maximum: probabilities are 2^(score - log2 of the sum).
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

namespace {

namespace blas = at::native::cpublas;

constexpr int64_t ROWS = 64;  // queries (forward) or keys (backward) of a block
constexpr int64_t COLUMNS = 512;  // keys or queries that a block is multiplied with at a time
constexpr int64_t MAX_DIM = 512;
constexpr int64_t GRAIN = 32;  // what AMX likes lengths to be multiples of; the rest is zeros

// Rows of a right-hand factor that adjoin element by element in its packed form: (rows / PAIR, columns, PAIR).
template <typename T> constexpr int64_t PAIR = 4 / sizeof(T);

inline int64_t padded(int64_t n) { return (n + GRAIN - 1) / GRAIN * GRAIN; }

inline float widen(float x) { return x; }
inline float widen(at::BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.x) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// Stores a finite number, to the nearest, ties to even, and returns what was stored.
inline float store(float* to, float x) { return *to = x; }
inline float store(at::BFloat16* to, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  to->x = static_cast<uint16_t>(bits);
  bits <<= 16;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// 2^x to some 2e-7 for |x| <= 126 (beyond: as there), as arithmetic that a compiler turns into vectors.
inline float power_of_2(float x) {
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
inline float seen(int32_t i, int32_t from, int32_t to) { return static_cast<float>((i >= from) & (i < to)); }

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
};

template <typename T> Head<T> head(const at::Tensor& x, int64_t b, int64_t h) {
  return {x.data_ptr<T>() + b * x.stride(0) + h * x.stride(2), x.stride(1)};
}

// Rows 2r and 2r + 1 of 16-bit numbers as row r of pairs.
inline void interleave(const at::BFloat16* even, const at::BFloat16* odd, int64_t count, at::BFloat16* out) {
  const uint16_t *low = reinterpret_cast<const uint16_t*>(even), *high = reinterpret_cast<const uint16_t*>(odd);
  uint32_t* words = reinterpret_cast<uint32_t*>(out);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) words[i] = low[i] | static_cast<uint32_t>(high[i]) << 16;
}

// (T, D) as the right-hand factor (T, D): out (padded T / PAIR, D, PAIR).
template <typename T> void pack(Head<T> x, int64_t length, int64_t D, T* out) {
  T zeros[MAX_DIM] = {};
  for (int64_t t = 0; t < padded(length); t += PAIR<T>)
    if constexpr (PAIR<T> == 2)
      interleave(t < length ? x.row(t) : zeros, t + 1 < length ? x.row(t + 1) : zeros, D, out + t * D);
    else
      std::copy_n(t < length ? x.row(t) : zeros, D, out + t * D);
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
  float scale;
  const int64_t* starts;  // (B, T) or none
  Sight sight(int64_t b) const { return {T, window, starts ? starts + b * T : nullptr}; }
};

// y (B, T, H, D); log_sums (B, H, T): log2 of each query's sum of exponentials.
template <typename T>
void forward_task(const Sizes& z, int64_t b, int64_t kv, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, at::Tensor& y,
                  at::Tensor& log_sums) {
  const int64_t D = z.D, columns = padded(z.T);
  Scratch scratch(2 * columns * D * sizeof(T) + ROWS * COLUMNS * 8 + ROWS * D * 4 + 4096);
  T *keys = scratch.take<T>(D * columns), *values = scratch.take<T>(columns * D), *p = scratch.take<T>(ROWS * COLUMNS);
  float *s = scratch.take<float>(ROWS * COLUMNS), *o = scratch.take<float>(ROWS * D), sums[ROWS];
  pack_transposed(head<T>(k, b, kv), z.T, D, keys);
  pack(head<T>(v, b, kv), z.T, D, values);
  const Sight sight = z.sight(b);
  const float factor = z.scale * 1.44269504f;
  for (int64_t h = kv * (z.H / z.K); h < (kv + 1) * (z.H / z.K); ++h) {
    const Head<T> queries = head<T>(q, b, h), out = head<T>(y, b, h);
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

// The gradients by q, k, v, given those by y.
template <typename T>
void backward_task(const Sizes& z, int64_t b, int64_t kv, const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k,
                   const at::Tensor& v, const at::Tensor& y, const at::Tensor& log_sums, at::Tensor& dq, at::Tensor& dk, at::Tensor& dv) {
  const int64_t D = z.D, columns = padded(z.T), size = columns * D;
  Scratch scratch(5 * size * sizeof(T) + 4 * size * 4 + ROWS * COLUMNS * (8 + 3 * sizeof(T)) + columns * 8 + 4096);
  T *qt = scratch.take<T>(size), *gt = scratch.take<T>(size), *qn = scratch.take<T>(size), *gn = scratch.take<T>(size);
  T *kt = scratch.take<T>(size), *p = scratch.take<T>(ROWS * COLUMNS), *ds = scratch.take<T>(ROWS * COLUMNS);
  T* pairs = scratch.take<T>(ROWS * COLUMNS);
  float *s = scratch.take<float>(ROWS * COLUMNS), *dp = scratch.take<float>(ROWS * COLUMNS), *delta = scratch.take<float>(columns);
  float* logs = scratch.take<float>(columns);
  float *dq_DT = scratch.take<float>(size), *dq_TD = scratch.take<float>(size), *dk_TD = scratch.take<float>(size), *dv_TD = scratch.take<float>(size);
  const Head<T> keys = head<T>(k, b, kv), values = head<T>(v, b, kv);
  transpose<T>(keys.data, keys.stride, z.T, columns, D, kt);
  const Sight sight = z.sight(b);
  const float factor = z.scale * 1.44269504f;
  for (int64_t h = kv * (z.H / z.K), first = h; h < (kv + 1) * (z.H / z.K); ++h) {
    const Head<T> queries = head<T>(q, b, h), grads = head<T>(grad, b, h), out = head<T>(y, b, h), dqs = head<T>(dq, b, h);
    std::copy_n(log_sums.data_ptr<float>() + (b * z.H + h) * z.T, z.T, logs);
    pack_transposed(queries, z.T, D, qt), pack_transposed(grads, z.T, D, gt);
    pack(queries, z.T, D, qn), pack(grads, z.T, D, gn);
    for (int64_t t = 0; t < z.T; ++t) {
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
    for (int64_t t = 0; t < z.T; ++t)
      for (int64_t d = 0; d < D; ++d) store(dqs.row(t) + d, dq_TD[t * D + d]);
  }
  const Head<T> dks = head<T>(dk, b, kv), dvs = head<T>(dv, b, kv);
  for (int64_t t = 0; t < z.T; ++t)
    for (int64_t d = 0; d < D; ++d) store(dks.row(t) + d, dk_TD[t * D + d]), store(dvs.row(t) + d, dv_TD[t * D + d]);
}

template <typename Task> void run(const Sizes& z, bool bf16, const Task& task) {
  at::parallel_for(0, z.B * z.K, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(i / z.K, i % z.K);
    blas::brgemm_release(bf16);
  });
}

Sizes sizes(const at::Tensor& q, const at::Tensor& k, const std::optional<at::Tensor>& starts, int64_t window, double scale) {
  TORCH_CHECK(q.size(3) % GRAIN == 0 && q.size(3) <= MAX_DIM, "the head dimension must be a multiple of 32 up to 512, not ", q.size(3));
  TORCH_CHECK(!starts || (starts->is_contiguous() && starts->scalar_type() == at::kLong), "starts must be contiguous int64");
  return {q.size(0), q.size(1), q.size(2), k.size(2), q.size(3), window, static_cast<float>(scale),
          starts ? starts->data_ptr<int64_t>() : nullptr};
}

at::Tensor rows_contiguous(const at::Tensor& x) { return x.stride(3) == 1 ? x : x.contiguous(); }

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q_, const at::Tensor& k_, const at::Tensor& v_,
                                           const std::optional<at::Tensor>& starts, int64_t window, double scale) {
  const at::Tensor q = rows_contiguous(q_), k = rows_contiguous(k_), v = rows_contiguous(v_);
  const Sizes z = sizes(q, k, starts, window, scale);
  at::Tensor y = at::empty({z.B, z.T, z.H, z.D}, q.options());
  at::Tensor log_sums = at::empty({z.B, z.H, z.T}, q.options().dtype(at::kFloat));
  const bool bf16 = q.scalar_type() == at::kBFloat16;
  run(z, bf16, [&](int64_t b, int64_t kv) {
    bf16 ? forward_task<at::BFloat16>(z, b, kv, q, k, v, y, log_sums) : forward_task<float>(z, b, kv, q, k, v, y, log_sums);
  });
  return {y, log_sums};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad_, const at::Tensor& q_, const at::Tensor& k_,
                                                        const at::Tensor& v_, const at::Tensor& y, const at::Tensor& log_sums,
                                                        const std::optional<at::Tensor>& starts, int64_t window, double scale) {
  const at::Tensor grad = rows_contiguous(grad_), q = rows_contiguous(q_), k = rows_contiguous(k_), v = rows_contiguous(v_);
  const Sizes z = sizes(q, k, starts, window, scale);
  at::Tensor dq = at::empty({z.B, z.T, z.H, z.D}, q.options());
  at::Tensor dk = at::empty({z.B, z.T, z.K, z.D}, q.options()), dv = at::empty({z.B, z.T, z.K, z.D}, q.options());
  const bool bf16 = q.scalar_type() == at::kBFloat16;
  run(z, bf16, [&](int64_t b, int64_t kv) {
    bf16 ? backward_task<at::BFloat16>(z, b, kv, grad, q, k, v, y, log_sums, dq, dk, dv)
         : backward_task<float>(z, b, kv, grad, q, k, v, y, log_sums, dq, dk, dv);
  });
  return {dq, dk, dv};
}

}  // namespace

TORCH_LIBRARY(nanochat_model, library) {
  library.def("attention(Tensor q, Tensor k, Tensor v, Tensor? starts, int window, float scale) -> (Tensor, Tensor)");
  library.def(
      "attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor y, Tensor log_sums, Tensor? starts, int window, "
      "float scale) -> (Tensor, Tensor, Tensor)");
  library.def("has_fast_products(ScalarType dtype) -> bool", [](at::ScalarType dtype) { return blas::could_pack(dtype); });
}

TORCH_LIBRARY_IMPL(nanochat_model, CPU, library) {
  library.impl("attention", &forward);
  library.impl("attention_backward", &backward);
}
