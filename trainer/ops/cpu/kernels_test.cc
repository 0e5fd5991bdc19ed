// Every table that this CPU can run, against plain sums.
#include "trainer/ops/cpu/kernels.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <utility>
#include <vector>

namespace offshoot::trainer::cpu {
namespace {

// Where OFFSHOOT_CPU_KERNELS asks for a table that this CPU cannot run, no test of this program
// says anything of it.
class AskedForKernels : public testing::Environment {
 public:
  void SetUp() override {
    const char* wanted = std::getenv("OFFSHOOT_CPU_KERNELS");
    if (wanted != nullptr && std::strcmp(Kernels().name, wanted) != 0) {
      GTEST_SKIP() << "this CPU lacks the kernels " << wanted;
    }
  }
};
[[maybe_unused]] const testing::Environment* const kAskedForKernels =
    testing::AddGlobalTestEnvironment(new AskedForKernels);

std::vector<const KernelTable*> Tables() {
  const KernelTable* tables[8];
  return {tables, tables + RunnableKernels(tables, 8)};
}

std::uint16_t ToBFloat16(float value) {
  return static_cast<std::uint16_t>((std::bit_cast<std::uint32_t>(value) + 0x8000) >> 16);
}
float FromBFloat16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// Values that bfloat16 holds, [rows, columns], in either type.
struct Matrix {
  Element type;
  std::int64_t rows, columns;
  std::vector<float> wide;
  std::vector<std::uint16_t> narrow;

  Matrix(Element element, std::int64_t r, std::int64_t c, std::mt19937& draw)
      : type(element), rows(r), columns(c) {
    std::uniform_real_distribution<float> values(-1, 1);
    for (std::int64_t i = 0; i < r * c; ++i) {
      narrow.push_back(ToBFloat16(values(draw)));
      wide.push_back(FromBFloat16(narrow.back()));
    }
  }
  std::int64_t Size() const { return type == Element::kFloat32 ? 4 : 2; }
  const char* Data() const {
    return type == Element::kFloat32 ? reinterpret_cast<const char*>(wide.data())
                                     : reinterpret_cast<const char*>(narrow.data());
  }
  double At(std::int64_t row, std::int64_t column) const {
    return wide[static_cast<std::size_t>(row * columns + column)];
  }
};

struct Free {
  void operator()(char* p) const { std::free(p); }
};

// Runs the tasks in two ranges. Scratch begins as NaN of either type: nothing may depend on it.
void Run(const KernelTable& table, const Product& product, std::mt19937& draw) {
  const std::size_t bytes = (table.product_scratch(product) + 64) / 64 * 64;
  const std::unique_ptr<char, Free> scratch(static_cast<char*>(std::aligned_alloc(64, bytes)));
  const std::int64_t tasks = table.product_tasks(product);
  const std::int64_t cut = std::uniform_int_distribution<std::int64_t>(0, tasks)(draw);
  for (const auto& [begin, end] : {std::pair{std::int64_t{0}, cut}, std::pair{cut, tasks}}) {
    std::memset(scratch.get(), 0xff, bytes);
    table.product(product, begin, end, scratch.get());
  }
}

// A result [m, n] that began as 0.5 everywhere, in rows that are longer than n.
struct Result {
  Element type;
  std::int64_t n, stride;
  std::vector<float> wide;
  std::vector<std::uint16_t> narrow;

  Result(Element element, std::int64_t m, std::int64_t columns)
      : type(element), n(columns), stride(columns + 3) {
    wide.assign(static_cast<std::size_t>(m * stride), 0.5F);
    narrow.assign(static_cast<std::size_t>(m * stride), ToBFloat16(0.5F));
  }
  char* Data() {
    return type == Element::kFloat32 ? reinterpret_cast<char*>(wide.data())
                                     : reinterpret_cast<char*>(narrow.data());
  }
  float At(std::int64_t row, std::int64_t column) const {
    const auto at = static_cast<std::size_t>(row * stride + column);
    return type == Element::kFloat32 ? wide[at] : FromBFloat16(narrow[at]);
  }
};

// The numbers of a test, drawn anew for each run.
struct Draw {
  std::mt19937 draw;
  std::int64_t UpTo(std::int64_t most) {
    return std::uniform_int_distribution<std::int64_t>(1, most)(draw);
  }
  bool Coin() { return UpTo(2) == 1; }
  Element Type() { return Coin() ? Element::kFloat32 : Element::kBFloat16; }
};

// Compares `product` by every table that takes its type with `want` [m, n].
void ExpectProduct(Product product, Element c_type, const std::vector<double>& want,
                   const std::function<void(const KernelTable&, ProductPart&)>& prepare, Draw& d) {
  std::vector<ProductPart> parts(product.parts, product.parts + product.part_count);
  product.parts = parts.data();
  for (const KernelTable* table : Tables()) {
    if (product.a_type == Element::kBFloat16 && !table->bf16_products) continue;
    prepare(*table, parts[0]);
    Result result(c_type, product.m, product.n);
    product.c = result.Data();
    product.c_type = c_type;
    product.c_row_stride = result.stride * (c_type == Element::kFloat32 ? 4 : 2);
    Run(*table, product, d.draw);
    for (std::int64_t row = 0; row < product.m; ++row) {
      for (std::int64_t i = 0; i < result.stride; ++i) {
        const bool inside = i < product.n;
        const double right =
            inside ? want[static_cast<std::size_t>(row * product.n + i)] : 0.5;  // else untouched
        const double tolerance =
            !inside ? 0 : 2e-4 + (c_type == Element::kFloat32 ? 0 : std::abs(right) / 200);
        ASSERT_NEAR(result.At(row, i), right, tolerance) << table->name << ": " << row << ", " << i;
      }
    }
  }
}

TEST(Kernels, Product_AnyShapeTypeAndLayout_IsThePlainSum) {
  Draw d{std::mt19937(7)};
  for (int run = 0; run < 90; ++run) {
    SCOPED_TRACE(run);
    Product product = {};
    product.a_type = run % 3 == 0 ? Element::kFloat32 : Element::kBFloat16;
    product.m = d.UpTo(150);
    product.n = d.UpTo(run % 5 == 0 ? 900 : 200);
    product.part_count = d.UpTo(3);
    product.accumulate = d.Coin();
    product.alpha = 0.75F;
    const Matrix bias(d.Type(), 1, product.n, d.draw);
    if (d.Coin()) product.bias = bias.Data();
    product.bias_type = bias.type;
    std::vector<double> want(static_cast<std::size_t>(product.m * product.n));
    std::vector<Matrix> matrices;
    matrices.reserve(static_cast<std::size_t>(2 * product.part_count));  // parts point into them
    std::vector<ProductPart> parts;
    for (std::int64_t i = 0; i < product.part_count; ++i) {
      const std::int64_t k = run % 4 == 0 ? 32 * d.UpTo(4) : 2 * d.UpTo(50);
      const bool transposed = d.Coin();
      const Matrix& a = matrices.emplace_back(product.a_type, product.m, k, d.draw);
      const Matrix& b = matrices.emplace_back(d.Type(), transposed ? product.n : k,
                                              transposed ? k : product.n, d.draw);
      const std::int64_t row = b.columns * b.Size();
      parts.push_back({a.Data(), k * a.Size(), 4, b.Data(), b.type, transposed ? b.Size() : row,
                       transposed ? row : b.Size(), k});
      for (std::int64_t r = 0; r < product.m; ++r) {
        for (std::int64_t c = 0; c < product.n; ++c) {
          double sum = 0;
          for (std::int64_t s = 0; s < k; ++s) {
            sum += a.At(r, s) * (transposed ? b.At(c, s) : b.At(s, c));
          }
          want[static_cast<std::size_t>(r * product.n + c)] += 0.75 * sum;
        }
      }
    }
    for (std::size_t i = 0; i < want.size(); ++i) {
      if (product.bias != nullptr) want[i] += bias.wide[i % static_cast<std::size_t>(product.n)];
      if (product.accumulate) want[i] += 0.5;
    }
    product.parts = parts.data();
    ExpectProduct(
        product, product.accumulate ? Element::kFloat32 : d.Type(), want,
        [](const KernelTable&, ProductPart&) {}, d);
  }
}

TEST(Kernels, TurnedProduct_AnyNumberOfTokens_IsThePlainSum) {
  Draw d{std::mt19937(8)};
  for (int run = 0; run < 60; ++run) {
    SCOPED_TRACE(run);
    const std::int64_t tokens = d.UpTo(300);
    Product product = {};
    product.a_type = Element::kBFloat16;
    product.m = d.UpTo(run % 2 == 0 ? 16 : 60);
    product.n = d.UpTo(150);
    product.alpha = 1;
    product.accumulate = run % 3 != 0;
    const Matrix a(product.a_type, tokens, product.m, d.draw);
    const Matrix b(product.a_type, tokens, product.n, d.draw);
    std::vector<double> want;
    for (std::int64_t r = 0; r < product.m; ++r) {
      for (std::int64_t c = 0; c < product.n; ++c) {
        double sum = product.accumulate ? 0.5 : 0;
        for (std::int64_t t = 0; t < tokens; ++t) sum += a.At(t, r) * b.At(t, c);
        want.push_back(sum);
      }
    }
    const ProductPart part = {nullptr, 0, 0, b.Data(), b.type, b.columns * 2, 2, tokens};
    product.parts = &part;
    product.part_count = 1;
    std::vector<std::uint32_t> words;
    ExpectProduct(
        product, Element::kFloat32, want,
        [&](const KernelTable& table, ProductPart& turned_part) {
          words.resize(static_cast<std::size_t>(table.turned_words(tokens, a.columns)));
          const TurnedA turned =
              table.turn(a.Data(), a.columns * 2, tokens, a.columns, words.data());
          turned_part.a = turned.a;
          turned_part.a_row_stride = turned.row_stride;
          turned_part.a_step_stride = turned.step_stride;
        },
        d);
  }
}

}  // namespace
}  // namespace offshoot::trainer::cpu
