#include <fmt/format.h>

#include "base/isa.h"
#include "commands.h"
#include "kernels/attention/kv_block.h"
#include "models/registry.h"
#include "tensor/quant_type.h"

namespace witan {

void print_list() {
  const Isa selected = select_isa();
  fmt::print("Architectures           GGUF        Hugging Face\n");
  for (const Architecture& a : architectures()) {
    fmt::print("  {:<20}  {:<10}  {:<14} {}{}\n", a.name, a.gguf, a.huggingface, a.title, a.moe ? "" : " (dense)");
  }
  fmt::print("\nWeight types            block   bytes\n");
  for (const QuantType& type : quant_types()) {
    fmt::print("  {:<20}  {:>5}   {:>5}\n", type.name, type.block_size, type.block_bytes);
  }
  fmt::print("\nKV cache types\n ");
  for (const KvCodec codec : {KvCodec::kF32, KvCodec::kF16, KvCodec::kBF16, KvCodec::kQ8}) {
    fmt::print(" {}", kv_codec_name(codec));
  }
  fmt::print("\n\nKernel variants\n");
  for (const Isa isa : kAllIsas) {
    fmt::print("  {:<20}  {}{}\n", isa_name(isa), cpu_supports(isa) ? "this CPU has it" : "not on this CPU",
               isa == selected ? ", selected" : "");
  }
}

}  // namespace witan
