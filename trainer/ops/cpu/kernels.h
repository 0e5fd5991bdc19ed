// The CPU kernels under the operations: plain pointers in, no LibTorch, no allocation, no threads.
//
// The same source (*.inc) is compiled once per instruction set into a table of functions; Kernels()
// picks the best table that this CPU can run. Callers split the work into ranges of tasks, give
// each thread one range and a scratch buffer, and get results that do not depend on how the tasks
// were split: every output element is summed in one fixed order.
//
//   kernels_baseline.cc   any CPU: products in float32
//   kernels_avx2.cc       AVX2 + FMA: products in float32
//   kernels_avx512.cc     AVX-512: products in float32
//   kernels_avx512_bf16.cc  AVX-512 with vdpbf16ps: bfloat16 products accumulated in float32
//   kernels_amx.cc        the same with AMX's tiles
//
// Sizes are in elements and strides in bytes unless a name says otherwise.
#pragma once

#include <cstddef>
#include <cstdint>

namespace offshoot::trainer::cpu {

enum class Element : std::uint8_t { kFloat32, kBFloat16 };

// One addend of a product: A [m, k] times B [k, n].
struct ProductPart {
  const char* a;
  std::int64_t a_row_stride;   // from one row of A to the next
  std::int64_t a_step_stride;  // from one step of k to the next; a step is one element, or a pair
                               // of neighbours (4 bytes) where A is bfloat16
  const char* b;
  Element b_type;
  std::int64_t b_k_stride;
  std::int64_t b_n_stride;
  std::int64_t k;
};

// A transposed matrix as a left operand.
struct TurnedA {
  const char* a;
  std::int64_t row_stride, step_stride;  // as ProductPart's
  std::int64_t steps;                    // zeros included
};

// C [m, n] = (or +=) alpha * sum of parts + bias. The columns of C are contiguous.
struct Product {
  Element a_type;  // kBFloat16 only where the table has bf16_products
  std::int64_t m, n;
  const ProductPart* parts;
  std::int64_t part_count;
  const char* bias;  // [n] of bias_type, or null
  Element bias_type;
  float alpha;
  char* c;
  Element c_type;
  std::int64_t c_row_stride;
  bool accumulate;  // c_type must be kFloat32
  // What the next product of this thread reads: the first columns of its B are fetched while this
  // one ends. Or null; only b and k are looked at, and next_n says how many columns there are.
  const ProductPart* next = nullptr;
  std::int64_t next_n = 0;
};

// x + residual (when given) -> sum, then RMS norm of it -> out, 1 / rms -> inverse [rows].
struct NormForward {
  Element type;
  std::int64_t rows, width;
  float eps;
  const char* x;
  const char* residual;  // or null: then sum is not written
  char* sum;
  const char* weight;  // of `type`
  char* out;
  float* inverse;
};

// The norm's result once more, from what the forward pass kept.
struct NormAgain {
  Element type;
  std::int64_t width;
  const char *x, *weight;
  const float* inverse;
  char* out;
};

struct NormBackward {
  Element type;
  std::int64_t rows, width;
  const char* grad;
  const char* grad_sum;  // added to the result, or null
  const char* x;         // what was normed
  const char* weight;
  const float* inverse;
  char* grad_x;
};

struct RotaryTurn {
  Element type;
  std::int64_t tokens, heads, width, half;
  bool interleaved;
  bool backward;  // turns back: the gradient
  const char* x;
  std::int64_t x_token_stride;  // heads are contiguous
  char* out;                    // contiguous
  const float* cos;             // [tokens, half]
  const float* sin;
};

// Causal attention over rows of tokens (softmax in float32); see CausalAttention in ops.h.
// Task i is row i / key_heads, key head i % key_heads, with all query heads that share it.
struct Attention {
  Element type;  // kBFloat16 only where the table has bf16_products
  std::int64_t tokens, query_heads, key_heads, width, value_width;
  const std::int64_t* row_offsets;
  std::int64_t longest_row;
  std::int64_t window;  // 0: none
  float scale;
  const char *q, *k, *v;  // heads contiguous inside a token
  std::int64_t q_token_stride, k_token_stride, v_token_stride;
  char* out;        // contiguous [tokens, query_heads, value_width]
  float* log_sums;  // [query_heads, tokens]
  // backward only
  const char* grad_out;            // contiguous
  char *grad_q, *grad_k, *grad_v;  // contiguous
};

// The inside of a gated MLP on the tokens of one expert, each row times its routing weight:
// out = weight * silu(gate) * up. Everything is contiguous [rows, width].
struct WeightedSwiglu {
  Element type;
  std::int64_t rows, width;
  const char *gate, *up;
  const float* weights;  // [rows]
  char* out;             // forward only
  // backward only
  const char* grad;  // of out
  char *grad_gate, *grad_up;
  float* grad_weights;  // [rows]
};

// out[i] = sum over j of source[index[i * per_row + j]], summed in float32.
struct RowSums {
  Element type;
  std::int64_t per_row, width;
  const char* source;
  const std::int64_t* index;
  char* out;
};

// Log-sum-exp of logits = hidden W^T + bias, and the gradient of its sum minus the labels' logits.
// W may come in pieces, in order: a call for each; the last one finishes. The result is the same
// bit for bit if all but the last are multiples of token_loss_columns.
struct TokenLoss {
  Element type;    // of hidden; kBFloat16 only where the table has bf16_products
  Element w_type;  // of weight and bias
  std::int64_t rows, width, vocab;
  std::int64_t first, count;   // the piece: rows of W
  const char* hidden;          // contiguous [rows, width]
  const char* weight;          // of the piece: contiguous [count, width]
  const char* bias;            // [vocab] or null
  const std::int64_t* labels;  // [rows], all valid
  float* losses;               // [rows]
  float* grad;                 // [rows, width], or null for the losses alone
  // Kept from piece to piece.
  float *references, *sums;  // [rows]
  char* label_rows;          // of W, [rows, width] of w_type; null if grad is
};

struct KernelTable {
  const char* name;
  bool bf16_products;  // products take bfloat16 operands as they are

  // Tasks of a product, those of them that lie in one panel, which each range of them packs, and
  // bytes of scratch each thread needs.
  std::int64_t (*product_tasks)(const Product&);
  std::int64_t (*product_panel_tasks)(const Product&);
  std::size_t (*product_scratch)(const Product&);
  void (*product)(const Product&, std::int64_t begin, std::int64_t end, void* scratch);

  // A = src^T for src [k, n] of bfloat16, in turned_words(k, n) words of 4 bytes at dst.
  std::int64_t (*turned_words)(std::int64_t k, std::int64_t n);
  TurnedA (*turn)(const char* src, std::int64_t k_stride, std::int64_t k, std::int64_t n,
                  std::uint32_t* dst);

  void (*norm_forward)(const NormForward&, std::int64_t begin, std::int64_t end);
  void (*norm_again)(const NormAgain&, std::int64_t begin, std::int64_t end);
  void (*norm_backward)(const NormBackward&, std::int64_t begin, std::int64_t end);
  void (*rotary)(const RotaryTurn&, std::int64_t begin, std::int64_t end);
  // out = silu(gate) * up over elements [begin, end).
  void (*swiglu_forward)(Element type, const char* gate, const char* up, char* out,
                         std::int64_t begin, std::int64_t end);
  void (*swiglu_backward)(Element type, const char* grad, const char* gate, const char* up,
                          char* grad_gate, char* grad_up, std::int64_t begin, std::int64_t end);
  void (*weighted_swiglu_forward)(const WeightedSwiglu&);
  void (*weighted_swiglu_backward)(const WeightedSwiglu&);
  void (*row_sums)(const RowSums&, std::int64_t begin, std::int64_t end);
  std::size_t (*attention_scratch)(const Attention&, bool backward);
  void (*attention_forward)(const Attention&, std::int64_t begin, std::int64_t end, void* scratch);
  void (*attention_backward)(const Attention&, std::int64_t begin, std::int64_t end, void* scratch);
  std::int64_t (*token_loss_columns)(const TokenLoss&);  // rows of W at a time
  std::size_t (*token_loss_scratch)(const TokenLoss&);
  void (*token_loss)(const TokenLoss&, std::int64_t begin, std::int64_t end, void* scratch);
};

// The table in use. OFFSHOOT_CPU_KERNELS=baseline|avx2|avx512|avx512_bf16|amx asks for a lesser one
// (tests, reproducing a run of another machine); one this CPU lacks is ignored.
const KernelTable& Kernels();

// All tables that this CPU can run, best first (tests run them all).
std::size_t RunnableKernels(const KernelTable** tables, std::size_t capacity);

}  // namespace offshoot::trainer::cpu
