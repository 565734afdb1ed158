// Attention of single tokens over the KV cache on a CPU: one pass over each row's own slots, keys and values read once.
// A row's length bounds its loop, so ragged rows cost what they hold and a slot that was never written is never read.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

namespace {

constexpr int64_t BYTES_PER_TASK = 1 << 16;

struct Shape {
  int64_t tokens, heads, kv_heads, slots, window;
  int64_t row_stride;  // elements from one row of the cache to the next
  int64_t q_stride, k_stride, v_stride;  // elements from one token to the next
  float scale;
};

inline float widen(float x) { return x; }
inline float widen(at::BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.x) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// e^x for x <= 0, to some 2e-7, as arithmetic that a compiler turns into vectors: 2^n times a polynomial on [-1/2, 1/2].
inline float exp_negative(float x) {
  const float t = std::max(x, -87.0f) * 1.44269504f, n = std::nearbyint(t), f = (t - n) * 0.69314718f;
  const float power = 1 + f * (1 + f * (0.5f + f * (0.16666667f + f * (0.041666667f + f * (0.0083333333f + f * 0.0013888889f)))));
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return power * scale;
}

// One query head: scores against keys [count, D], softmax, the weighted sum of values. DIM is D where it is known early.
template <typename T, int DIM>
void attend_head(const T* q, const T* keys, const T* values, int64_t count, int64_t dim, float scale, float* query,
                 float* y, float* scores, T* out) {
  const int64_t D = DIM > 0 ? DIM : dim;
  for (int64_t d = 0; d < D; ++d) query[d] = widen(q[d]) * scale;
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t s = 0; s < count; ++s) {
    float sum = 0;
    for (int64_t d = 0; d < D; ++d) sum += query[d] * widen(keys[s * D + d]);
    scores[s] = sum;
    largest = std::max(largest, sum);
  }
  float total = 0;
  for (int64_t s = 0; s < count; ++s) total += scores[s] = exp_negative(scores[s] - largest);
  std::fill(y, y + D, 0.0f);
  for (int64_t s = 0; s < count; ++s) {
    const float share = scores[s];
    for (int64_t d = 0; d < D; ++d) y[d] += share * widen(values[s * D + d]);
  }
  for (int64_t d = 0; d < D; ++d) out[d] = static_cast<T>(y[d] / total);
}

template <typename T, int DIM>
void attend_tokens(const T* q, const T* k, const T* v, T* keys, T* values, const int64_t* rows, const int64_t* positions,
                   const Shape& shape, int64_t D, T* out) {
  const int64_t group = shape.heads / shape.kv_heads;
  // Waking a thread costs as much as visiting some tens of kilobytes.
  const int64_t visited = std::accumulate(positions, positions + shape.tokens, shape.tokens) / shape.tokens;
  const int64_t grain = 1 + BYTES_PER_TASK / (2 * std::min(visited, shape.window + 1) * D * sizeof(T));
  at::parallel_for(0, shape.tokens * shape.kv_heads, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> query(D), y(D), scores(shape.slots);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / shape.kv_heads, h = i % shape.kv_heads, position = positions[n];
      T* row_keys = keys + rows[n] * shape.row_stride + h * shape.slots * D;
      T* row_values = values + rows[n] * shape.row_stride + h * shape.slots * D;
      std::memcpy(row_keys + position * D, k + n * shape.k_stride + h * D, D * sizeof(T));
      std::memcpy(row_values + position * D, v + n * shape.v_stride + h * D, D * sizeof(T));
      const int64_t first = std::max<int64_t>(0, position - shape.window);
      for (int64_t head = h * group; head < (h + 1) * group; ++head)
        attend_head<T, DIM>(q + n * shape.q_stride + head * D, row_keys + first * D, row_values + first * D,
                            position + 1 - first, D, shape.scale, query.data(), y.data(), scores.data(),
                            out + (n * shape.heads + head) * D);
    }
  });
}

template <typename T>
void dispatch(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, at::Tensor& keys, at::Tensor& values,
              int64_t layer, const at::Tensor& rows, const at::Tensor& positions, const Shape& shape, at::Tensor& out) {
  const int64_t D = q.size(2);
  auto* const attend = D == 64 ? attend_tokens<T, 64> : D == 128 ? attend_tokens<T, 128> : attend_tokens<T, 0>;
  attend(q.const_data_ptr<T>(), k.const_data_ptr<T>(), v.const_data_ptr<T>(), keys.data_ptr<T>() + layer * keys.stride(1),
         values.data_ptr<T>() + layer * values.stride(1), rows.const_data_ptr<int64_t>(),
         positions.const_data_ptr<int64_t>(), shape, D, out.data_ptr<T>());
}

// q (N, H, D), k and v (N, K, D), keys and values (R, L, K, S, D), rows and positions (N,) -> (N, H, D).
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, at::Tensor keys, at::Tensor values,
                  int64_t layer, const at::Tensor& rows, const at::Tensor& positions, int64_t window, double scale) {
  TORCH_CHECK(q.stride(2) == 1 && k.stride(2) == 1 && v.stride(2) == 1, "heads must be contiguous");
  TORCH_CHECK(q.stride(1) == q.size(2) && k.stride(1) == q.size(2) && v.stride(1) == q.size(2), "heads must adjoin");
  const Shape shape{q.size(0), q.size(1), k.size(1), keys.size(3), window, keys.stride(0), q.stride(0), k.stride(0), v.stride(0),
                    static_cast<float>(scale)};
  at::Tensor out = at::empty({q.size(0), q.size(1), q.size(2)}, q.options());
  if (q.scalar_type() == at::kBFloat16)
    dispatch<at::BFloat16>(q, k, v, keys, values, layer, rows, positions, shape, out);
  else
    dispatch<float>(q, k, v, keys, values, layer, rows, positions, shape, out);
  return out;
}

}  // namespace

TORCH_LIBRARY(nanochat_engine, library) {
  library.def(
      "attend(Tensor q, Tensor k, Tensor v, Tensor(a!) keys, Tensor(b!) values, int layer, Tensor rows, "
      "Tensor positions, int window, float scale) -> Tensor");
}

TORCH_LIBRARY_IMPL(nanochat_engine, CPU, library) { library.impl("attend", &attend); }
