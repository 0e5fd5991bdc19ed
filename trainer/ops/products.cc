#include "trainer/ops/products.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "trainer/ops/cpu/parallel.h"
#include "trainer/ops/tensor_bytes.h"

namespace offshoot::trainer {
namespace {

using cpu::Element;
using cpu::ElementOf;
using cpu::Kernels;
using cpu::Product;
using cpu::ProductPart;

constexpr std::int64_t kMostParts = 16;     // of product.inc
constexpr std::int64_t kTokenBlock = 4096;  // tokens whose panel is packed at one time
// Where a processor does not multiply bfloat16, left operands are widened to float32 so many bytes
// at a time: more would only be memory, fewer rows would pack the right operand too often.
constexpr std::int64_t kWidenedLeftBytes = 4 << 20;
constexpr std::int64_t kLeastWidenedRows = 192;

bool UsesPairs(at::ScalarType type) { return type == at::kBFloat16 && Kernels().bf16_products; }

// Left operands of this type are widened to float32 first.
bool IsWidened(at::ScalarType type) { return type != at::kFloat && !UsesPairs(type); }

at::Tensor WithContiguousRows(const at::Tensor& t) {
  return t.stride(1) == 1 || t.size(1) == 1 ? t : t.contiguous();
}

// Float32 that a thread keeps from one product to the next: allocated anew each time, such pieces
// tear the heap apart and cost page faults.
at::Tensor WideningBuffer(std::int64_t elements) {
  thread_local at::Tensor buffer;
  if (!buffer.defined() || buffer.numel() < elements) {
    buffer = at::Tensor();
    buffer = at::empty({elements}, at::kFloat);
  }
  return buffer;
}

// What the products take as A: pairs must not run over the end of a row. `used` elements of the
// buffer hold the product's operands before this one.
at::Tensor AsLeftOperand(const at::Tensor& a, const at::Tensor& buffer, std::int64_t& used) {
  if (a.scalar_type() == at::kFloat) return WithContiguousRows(a);
  if (IsWidened(a.scalar_type())) {
    const at::Tensor widened = buffer.narrow(0, used, a.numel()).view(a.sizes());
    used += a.numel();
    return widened.copy_(a);
  }
  if (a.size(1) % 2 == 0) return WithContiguousRows(a);
  at::Tensor padded = at::zeros({a.size(0), a.size(1) + 1}, a.options());
  padded.narrow(1, 0, a.size(1)).copy_(a);
  return padded;
}

void Run(const Product& product) {
  const cpu::KernelTable& kernels = Kernels();
  constexpr std::int64_t kLeastTasks = 8;  // below that packing would be much of a range
  const std::int64_t panel = kernels.product_panel_tasks(product);
  cpu::ParallelTasks(kernels.product_tasks(product), kernels.product_scratch(product),
                     [&](std::int64_t begin, std::int64_t end, void* scratch) {
                       kernels.product(product, begin, end, scratch);
                     },
                     {.least = std::min(kLeastTasks, panel), .run = panel});
}

// a times b in float32, of values that may be narrower.
at::Tensor WideProduct(const at::Tensor& a, const at::Tensor& b) {
  if (a.is_cuda() && a.scalar_type() != at::kFloat) return at::mm(a, b, at::kFloat);
  return at::mm(a, b).to(at::kFloat);
}

// The same on a device that has no kernels of ours.
void MultiplyElsewhere(const at::Tensor& out, const std::vector<Addend>& addends,
                       const at::Tensor& bias, double alpha, bool accumulate) {
  bool first = !accumulate;
  for (const Addend& addend : addends) {
    const at::Tensor b = addend.b.to(addend.a.scalar_type());
    const at::Tensor right = addend.b_transposed ? b.t() : b;
    at::Tensor sum = out;
    if (out.scalar_type() != addend.a.scalar_type()) {
      const at::Tensor product = WideProduct(addend.a, right);
      first ? sum.copy_(product) : sum.add_(product);
    } else if (first) {
      at::mm_out(sum, addend.a, right);
    } else {
      at::addmm_out(sum, sum, addend.a, right);
    }
    first = false;
  }
  if (alpha != 1.0) out.mul_(alpha);
  if (bias.defined()) out.add_(bias);
}

}  // namespace

namespace cpu {

bool Supported(const at::Tensor& t) {
  return t.is_cpu() && (t.scalar_type() == at::kFloat || t.scalar_type() == at::kBFloat16);
}

Element ElementOf(at::ScalarType type) {
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16, "products take float32 or bfloat16");
  return type == at::kFloat ? Element::kFloat32 : Element::kBFloat16;
}

}  // namespace cpu

namespace {

// b as the kernels read it, without a.
ProductPart RightOperand(const at::Tensor& b, bool transposed) {
  const std::int64_t size = b.element_size(), row = b.stride(0) * size;
  return {nullptr,
          0,
          4,
          Bytes(b),
          ElementOf(b.scalar_type()),
          transposed ? size : row,
          transposed ? row : size,
          b.size(transposed ? 1 : 0)};
}

void ComputeHere(const at::Tensor& out, const std::vector<Addend>& addends, const at::Tensor& bias,
                 double alpha, bool accumulate, const Addend* next) {
  const at::ScalarType type = addends[0].a.scalar_type();
  const bool pairs = UsesPairs(type);
  std::int64_t widened = 0;
  if (IsWidened(type)) {
    for (const Addend& addend : addends) widened += addend.a.numel();
  }
  const at::Tensor buffer = widened > 0 ? WideningBuffer(widened) : at::Tensor();
  std::int64_t used = 0;
  std::vector<at::Tensor> kept;  // converted operands live until the product is done
  ProductPart parts[kMostParts];
  std::int64_t count = 0;
  for (const Addend& addend : addends) {
    const std::int64_t k = addend.a.size(1);
    TORCH_CHECK(addend.a.scalar_type() == type && addend.a.size(0) == out.size(0) &&
                    addend.b.size(addend.b_transposed ? 1 : 0) == k &&
                    addend.b.size(addend.b_transposed ? 0 : 1) == out.size(1),
                "a product's shapes and types must agree");
    const at::Tensor a = AsLeftOperand(addend.a, buffer, used);
    const at::Tensor b = WithContiguousRows(addend.b);
    ProductPart& part = parts[count++] = RightOperand(b, addend.b_transposed);
    part.a = Bytes(a);
    part.a_row_stride = a.stride(0) * a.element_size();
    kept.push_back(a);
    kept.push_back(b);
  }
  const at::Tensor flat_bias = bias.defined() ? bias.contiguous() : bias;
  ProductPart ahead = {};
  if (next != nullptr) ahead = RightOperand(next->b, next->b_transposed);
  Run({pairs ? Element::kBFloat16 : Element::kFloat32, out.size(0), out.size(1), parts, count,
       flat_bias.defined() ? Bytes(flat_bias) : nullptr,
       flat_bias.defined() ? ElementOf(flat_bias.scalar_type()) : Element::kFloat32,
       static_cast<float>(alpha), static_cast<char*>(out.mutable_data_ptr()),
       ElementOf(out.scalar_type()), out.stride(0) * out.element_size(), accumulate,
       next != nullptr ? &ahead : nullptr,
       next != nullptr ? next->b.size(next->b_transposed ? 0 : 1) : 0});
}

// Rows that ComputeHere takes at one time: all, unless their left operands are to be widened.
std::int64_t RowsAtOnce(const std::vector<Addend>& addends) {
  const at::Tensor& first = addends[0].a;
  const std::int64_t rows = first.size(0);
  if (!IsWidened(first.scalar_type())) return rows;
  std::int64_t row_bytes = 0;
  for (const Addend& addend : addends) row_bytes += addend.a.size(1) * 4;
  const std::int64_t most =
      std::max(kLeastWidenedRows, kWidenedLeftBytes / std::max<std::int64_t>(1, row_bytes));
  const std::int64_t pieces = (rows + most - 1) / most;
  return (rows + pieces - 1) / pieces;
}

void Compute(const at::Tensor& out, const std::vector<Addend>& addends, const at::Tensor& bias,
             double alpha, bool accumulate, const Addend* next = nullptr) {
  TORCH_CHECK(!addends.empty() && addends.size() <= static_cast<std::size_t>(kMostParts),
              "a product has 1 to 16 addends");
  TORCH_CHECK(out.size(1) <= 1 || out.stride(1) == 1, "a product's rows must be contiguous");
  if (out.numel() == 0) return;
  if (!cpu::Supported(addends[0].a))
    return MultiplyElsewhere(out, addends, bias, alpha, accumulate);
  const std::int64_t rows = out.size(0), at_once = RowsAtOnce(addends);
  if (at_once >= rows) return ComputeHere(out, addends, bias, alpha, accumulate, next);
  for (std::int64_t begin = 0; begin < rows; begin += at_once) {
    const std::int64_t count = std::min(at_once, rows - begin);
    std::vector<Addend> narrowed = addends;
    for (Addend& addend : narrowed) addend.a = addend.a.narrow(0, begin, count);
    ComputeHere(out.narrow(0, begin, count), narrowed, bias, alpha, accumulate,
                begin + count == rows ? next : nullptr);
  }
}

}  // namespace

void MultiplyInto(const at::Tensor& out, const std::vector<Addend>& addends, const at::Tensor& bias,
                  double alpha, const Addend* next) {
  Compute(out, addends, bias, alpha, false, next);
}

void MultiplyAdding(const at::Tensor& out, const std::vector<Addend>& addends) {
  TORCH_CHECK(out.scalar_type() == at::kFloat, "products are added to float32");
  Compute(out, addends, {}, 1.0, true);
}

at::Tensor Multiply(const std::vector<Addend>& addends, const at::Tensor& bias, double alpha) {
  const Addend& first = addends.at(0);
  const at::Tensor out =
      at::empty({first.a.size(0), first.b.size(first.b_transposed ? 0 : 1)}, first.a.options());
  MultiplyInto(out, addends, bias, alpha);
  return out;
}

at::Tensor MultiplyTransposed(const at::Tensor& a, const at::Tensor& b) {
  TORCH_CHECK(a.size(0) == b.size(0) && a.scalar_type() == b.scalar_type(),
              "a transposed product's shapes and types must agree");
  if (!cpu::Supported(a)) return WideProduct(a.t(), b);
  const std::int64_t tokens = a.size(0), rows = a.size(1);
  const auto wide = a.options().dtype(at::kFloat);
  const at::Tensor out =
      tokens > 0 ? at::empty({rows, b.size(1)}, wide) : at::zeros({rows, b.size(1)}, wide);
  const bool pairs = UsesPairs(a.scalar_type());
  const Element type = pairs ? Element::kBFloat16 : Element::kFloat32;
  const at::Tensor left = WithContiguousRows(pairs ? a : a.to(at::kFloat));
  const at::Tensor right = WithContiguousRows(b);
  const std::int64_t b_row = right.stride(0) * right.element_size();
  const at::Tensor words =
      pairs ? at::empty({Kernels().turned_words(std::min(tokens, kTokenBlock), rows)},
                        out.options().dtype(at::kInt))
            : at::Tensor();
  for (std::int64_t begin = 0; begin < tokens; begin += kTokenBlock) {
    const std::int64_t count = std::min(kTokenBlock, tokens - begin);
    const std::int64_t a_row = left.stride(0) * left.element_size();
    cpu::TurnedA turned = {Bytes(left) + begin * a_row, 4, a_row, count};
    if (pairs) {
      turned = Kernels().turn(turned.a, a_row, count, rows,
                              static_cast<std::uint32_t*>(words.mutable_data_ptr()));
    }
    const ProductPart part = {turned.a,
                              turned.row_stride,
                              turned.step_stride,
                              Bytes(right) + begin * b_row,
                              ElementOf(right.scalar_type()),
                              b_row,
                              right.element_size(),
                              count};
    Run({type, rows, b.size(1), &part, 1, nullptr, Element::kFloat32, 1.0F,
         static_cast<char*>(out.mutable_data_ptr()), Element::kFloat32, out.stride(0) * 4,
         begin > 0});
  }
  return out;
}

}  // namespace offshoot::trainer
