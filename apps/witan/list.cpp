#include <fmt/format.h>

#include "base/isa.h"
#include "commands.h"
#include "files.h"
#include "kernels/attention/kv_block.h"
#include "kv/policy/kv_policy.h"
#include "models/registry.h"
#include "tensor/quant_type.h"

namespace witan {

void print_list() {
  const Isa selected = select_isa();
  print_stdout("Architectures           GGUF        Hugging Face\n");
  for (const Architecture& a : architectures()) {
    print_stdout("  {:<20}  {:<10}  {:<19}  {}{}\n", a.name, a.gguf, a.huggingface, a.title, a.moe ? "" : " (dense)");
  }
  print_stdout("\nWeight types            block   bytes\n");
  for (const QuantType& type : quant_types()) {
    print_stdout("  {:<20}  {:>5}   {:>5}\n", type.name, type.block_size, type.block_bytes);
  }
  print_stdout("\nKV cache types\n ");
  for (const KvCodec codec : kKvCodecs) {
    if (!kv_codec_is_blockwise(codec)) print_stdout(" {}", kv_codec_name(codec));
  }
  print_stdout("\n\nKV policies (--kv)\n");
  for (const KvPolicyPart& part : kv_policy_parts()) print_stdout("  {:<20}  {}\n", part.name, part.summary);
  print_stdout("  {:<20}  {}\n", "keep=X, tokens=N", "the budget: a ratio of the prompt, or a number of its tokens");
  print_stdout("  {:<20}  {}\n", "floor=N", "but at least so many tokens");
  print_stdout("  {:<20}  {}\n", "sinks=N, recent=N", "first and last tokens that stay in any case");
  print_stdout("  {:<20}  {}\n", "every=N", "judge again whenever so many tokens were generated");
  print_stdout("  {:<20}  {}\n", "when=pressure",
               "judge only where the KV cache has no room, again after every=64 tokens");
  print_stdout("  {:<20}  {}\n", "prefill_every=N", "and whenever so many tokens of a prompt were computed");
  print_stdout("  {:<20}  {}\n", "generated_keep=X", "or generated_tokens=N: a budget for generated tokens alone");
  print_stdout("  {:<20}  {}\n", "generated_growth=...", "adaptive: that budget grows until all tokens are generated");
  print_stdout("  {:<20}  {}\n", "guard=X", "keep everything where less of the attention than this share would stay");
  print_stdout("  {:<20}  {}\n", "action=hide",
               "or offload (to a file): what does not stay may come back when entries are judged again");
  print_stdout("  {:<20}  {}\n", "action=demote",
               "what does not stay is rounded, to what k, v, kivi, kvtuner or think say, and not lost");
  print_stdout("  {:<20}  {}\n", "k=TYPE, v=TYPE",
               "round older entries to a KV cache type; residual=128: not the last");
  print_stdout("\nKernel variants\n");
  for (const Isa isa : kAllIsas) {
    print_stdout("  {:<20}  {}{}\n", isa_name(isa), cpu_supports(isa) ? "this CPU has it" : "not on this CPU",
                 isa == selected ? ", selected" : "");
  }
}

}  // namespace witan
