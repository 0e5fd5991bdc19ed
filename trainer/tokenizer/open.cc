#include <filesystem>

#include "trainer/tokenizer/tokenizer.h"
#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {

std::unique_ptr<Tokenizer> Tokenizer::Open(const std::string& path) {
  if (std::filesystem::is_directory(path)) return FromDirectory(path);
  return FromGguf(OpenBaseModel(path).gguf_metadata);
}

}  // namespace offshoot::trainer
