// Continues a text: embed MODEL.gguf "Once upon a time"
#include <cstdio>

#include "base/error.h"
#include "engine/engine.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: embed MODEL.gguf PROMPT\n");
    return 2;
  }
  try {
    witan::Engine engine({.path = argv[1]});
    engine.submit({.prompt = engine.encode(argv[2]), .max_new_tokens = 32}, [](const witan::GenerationOutput& output) {
      std::fputs(output.text.c_str(), stdout);
      std::fflush(stdout);
    });
    while (engine.step()) {
    }
    std::puts("");
  } catch (const witan::Error& error) {
    std::fprintf(stderr, "embed: %s\n", error.what());
    return 1;
  }
}
