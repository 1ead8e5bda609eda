// Layer norm over the channels of each pixel, FiLM and SiLU in one pass, with the bits of `naive.py` on this torch.
//
// Sources of what is repeated here, operation by operation: ATen/native/cpu/moments_utils.h (RowwiseMoments),
// ATen/native/cpu/layer_norm_kernel.cpp and ATen/native/cpu/Activation.cpp (SiLU) of PyTorch. ATen computes layer norms
// with AVX2 even where it has AVX-512, so sums run over 8 lanes, and its compiler fused some multiplications with
// additions: these are written as fmadd here, and nothing else may be fused (-ffp-contract=off). `build.py` compares.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/silu.h>
#include <torch/library.h>

#include <algorithm>
#include <array>

namespace {

using at::BFloat16;
using at::Tensor;
using F = at::vec::Vectorized<float>;
using Pair = std::tuple<F, F>;

constexpr int LANES = 8;           // of an AVX2 vector of float32
constexpr int STEPS = 16;          // vectors that RowwiseMoments sums before it merges them
constexpr int PIXELS = 2 * LANES;  // that are merged side by side
constexpr int64_t GRAIN = 32768;   // values that are worth a thread
constexpr auto PARTS = [] {        // 1 / 1, 1 / 2, ... of each step
  std::array<float, STEPS> parts{};
  for (int j = 0; j < STEPS; ++j) parts[j] = 1.0f / static_cast<float>(j + 1);
  return parts;
}();

Pair load(const float* p, int n) {
  return {F::loadu(p, std::min(n, F::size())), F::loadu(p + F::size(), std::max(n - F::size(), 0))};
}

Pair load(const BFloat16* p, int n) {
  return at::vec::convert_to_float<BFloat16>(at::vec::Vectorized<BFloat16>::loadu(p, n));
}

void store(float* p, const Pair& v, int n) {
  std::get<0>(v).store(p, std::min(n, F::size()));
  std::get<1>(v).store(p + F::size(), std::max(n - F::size(), 0));
}

void store(BFloat16* p, const Pair& v, int n) {
  at::vec::convert_from_float<BFloat16>(std::get<0>(v), std::get<1>(v)).store(p, n);
}

// What an operation that ends in memory of this type leaves there: the nearest value, the even one of two.
template <typename T>
F rounded(const F& value) {
  if constexpr (std::is_same_v<T, float>) return value;
  using I = at::vec::Vectorized<int32_t>;
  const I bits = at::vec::cast<int32_t>(value), odd = (bits >> I(16)) & I(1);
  const F nearest = at::vec::cast<float>((bits + odd + I(0x7fff)) & I(static_cast<int32_t>(0xffff0000)));
  return F::blendv(nearest, value, value != value);
}

struct Moments {
  alignas(64) float mean[PIXELS] = {};
  alignas(64) float rstd[PIXELS] = {};
};

__m256 lanes(const float* p) { return _mm256_loadu_ps(p); }

__m256 lanes(const BFloat16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

// The moments of each lane of one pixel, x [c]: LANES means, then LANES sums of squared distances from them.
template <typename T>
void lane_moments(const T* x, int64_t c, float* out) {
  constexpr int HALVES = std::is_same_v<T, float> ? 1 : 2;  // a vector of bfloat16 makes two of float32
  constexpr int64_t WIDE = HALVES * LANES;
  __m256 all_mean = _mm256_setzero_ps(), all_m2 = all_mean;
  int64_t merged = 0;
  for (int64_t first = 0; first < c; first += STEPS * WIDE) {
    const int64_t steps = std::min<int64_t>(STEPS, (c - first) / WIDE);
    __m256 mean[HALVES] = {}, m2[HALVES] = {};
    for (int64_t j = 0; j < steps; ++j) {
      const __m256 part = _mm256_set1_ps(PARTS[j]);
      for (int half = 0; half < HALVES; ++half) {
        const __m256 value = lanes(x + first + j * WIDE + half * LANES), delta = value - mean[half];
        mean[half] = _mm256_fmadd_ps(delta, part, mean[half]);
        m2[half] = _mm256_fmadd_ps(delta, value - mean[half], m2[half]);
      }
    }
    for (int half = 0; half < HALVES; ++half) {
      const float part = static_cast<float>(steps) / static_cast<float>(merged + steps);
      const __m256 delta = mean[half] - all_mean, moved = _mm256_set1_ps(part) * delta;
      all_m2 = _mm256_fmadd_ps(delta * _mm256_set1_ps(static_cast<float>(merged)), moved, all_m2 + m2[half]);
      all_mean = all_mean + moved;
      merged += steps;
    }
  }
  _mm256_storeu_ps(out, all_mean);
  _mm256_storeu_ps(out + LANES, all_m2);
}

// The moments of PIXELS pixels, whose lanes are merged side by side; by_pixel [PIXELS, means and sums of LANES].
Moments merged_lanes(const float* by_pixel, int64_t c, float eps) {
  alignas(64) float by_lane[PIXELS * PIXELS];
  for (int i = 0; i < PIXELS; i += F::size()) {
    for (int j = 0; j < PIXELS; j += F::size()) {
      at::vec::transpose_mxn<float, F::size(), F::size()>(
          by_pixel + i * PIXELS + j, PIXELS, by_lane + j * PIXELS + i, PIXELS);
    }
  }
  Moments found;
  for (int i = 0; i < PIXELS; i += F::size()) {
    F mean(0.0f), m2(0.0f);
    for (int l = 0; l < LANES; ++l) {
      const F part(1.0f / static_cast<float>(l + 1)), merged(static_cast<float>(l * (c / LANES)));
      const F delta = F::loadu(by_lane + l * PIXELS + i) - mean;
      m2 = m2 + at::vec::fmadd(delta * delta * part, merged, F::loadu(by_lane + (LANES + l) * PIXELS + i));
      mean = at::vec::fmadd(part, delta, mean);
    }
    mean.store(found.mean + i);
    (F(1.0f) / (m2 / F(static_cast<float>(c)) + F(eps)).sqrt()).store(found.rstd + i);
  }
  return found;
}

F normal(const F& x, float mean, float rstd, const F& weight, const F& bias, float) {
  return at::vec::fmadd((x - F(mean)) * F(rstd), weight, bias);
}

F normal(const F& x, float mean, float rstd, const F& weight, const F& bias, BFloat16) {
  return at::vec::fmadd(at::vec::fmadd(x, F(rstd), F(-rstd * mean)), weight, bias);
}

F silu(const F& z) { return z / (F(1.0f) + z.neg().exp()); }

// The SiLU of every bfloat16 as float32, by its bits as a signed number: 256 KiB, of which usual values touch a few.
const float* silu_table() {
  static const Tensor table =
      at::silu(at::arange(-(1 << 15), 1 << 15, at::kInt).to(at::kShort).view(at::kBFloat16)).to(at::kFloat);
  static const float* const zero = table.const_data_ptr<float>() + (1 << 15);
  return zero;
}

F silu(const F& z, const float* table) {
  return at::vec::gather<sizeof(float)>(table, at::vec::cast<int32_t>(z) >> at::vec::Vectorized<int32_t>(16));
}

// Of one pixel, x [c]; scale is 1 + that of the FiLM, or null.
template <typename T>
void pixel(const T* x, float mean, float rstd, const float* weight, const float* bias, const float* scale,
           const float* shift, int c, const float* table, T* out) {
  for (int d = 0; d < c; d += 2 * F::size()) {
    const int n = std::min(c - d, 2 * F::size());
    auto [a, b] = load(x + d, n);
    const auto [wa, wb] = load(weight + d, n);
    const auto [ba, bb] = load(bias + d, n);
    a = rounded<T>(normal(a, mean, rstd, wa, ba, T()));
    b = rounded<T>(normal(b, mean, rstd, wb, bb, T()));
    if (scale) {
      const auto [sa, sb] = load(scale + d, n);
      const auto [ta, tb] = load(shift + d, n);
      a = rounded<T>(rounded<T>(a * sa) + ta);
      b = rounded<T>(rounded<T>(b * sb) + tb);
    }
    if constexpr (std::is_same_v<T, float>) {
      store(out + d, Pair{silu(a), silu(b)}, n);
    } else {
      store(out + d, Pair{silu(a, table), silu(b, table)}, n);
    }
  }
}

template <typename T>
void all_pixels(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& scale, const Tensor& shift,
                float eps, Tensor& out) {
  const int64_t c = x.size(1), plane = x.size(2) * x.size(3), rows = x.size(0) * plane;
  const bool film = scale.defined(), each = film && scale.size(0) > 1;
  const T* p_x = x.const_data_ptr<T>();
  const float *p_weight = weight.const_data_ptr<float>(), *p_bias = bias.const_data_ptr<float>();
  const float* p_scale = film ? scale.const_data_ptr<float>() : nullptr;
  const float* p_shift = film ? shift.const_data_ptr<float>() : nullptr;
  const float* table = std::is_same_v<T, float> ? nullptr : silu_table();
  T* p_out = out.data_ptr<T>();
  at::parallel_for(0, rows, std::max<int64_t>(1, GRAIN / c), [&](int64_t begin, int64_t end) {
    alignas(64) float sums[PIXELS * PIXELS] = {};
    for (int64_t first = begin; first < end; first += PIXELS) {
      const int64_t pixels = std::min<int64_t>(PIXELS, end - first);
      for (int64_t i = 0; i < pixels; ++i) lane_moments(p_x + (first + i) * c, c, sums + i * PIXELS);
      const Moments found = merged_lanes(sums, c, eps);
      for (int64_t row = first; row < first + pixels; ++row) {
        const int64_t own = each ? row / plane * c : 0;
        pixel<T>(p_x + row * c, found.mean[row - first], found.rstd[row - first], p_weight, p_bias,
                 film ? p_scale + own : nullptr, p_shift + own, static_cast<int>(c), table, p_out + row * c);
      }
    }
  });
}

// x [n, c, h, w], float32 or bfloat16, in dense channels-last memory; weight, bias [c]; scale (1 + that of the FiLM) and
// shift [1 or n, c]; these are contiguous and of x's type. c is a multiple of 8 (float32) or 16, up to 32 times as many.
Tensor pixel_norm_silu(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& scale,
                       const std::optional<Tensor>& shift, double eps) {
  Tensor out = at::empty({x.size(0), x.size(2), x.size(3), x.size(1)}, x.options()).permute({0, 3, 1, 2});
  const auto run = x.scalar_type() == at::kFloat ? all_pixels<float> : all_pixels<BFloat16>;
  run(x, weight.to(at::kFloat), bias.to(at::kFloat), scale ? scale->to(at::kFloat) : Tensor(),
      shift ? shift->to(at::kFloat) : Tensor(), static_cast<float>(eps), out);
  return out;
}

}  // namespace

TORCH_LIBRARY(surveybridge, m) {
  m.def("pixel_norm_silu(Tensor x, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, float eps) -> Tensor");
  m.impl("pixel_norm_silu", c10::DispatchKey::CPU, pixel_norm_silu);
}
