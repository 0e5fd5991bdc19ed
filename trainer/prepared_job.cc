#include "trainer/prepared_job.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include <future>
#include <utility>

#include "trainer/error.h"
#include "trainer/export/gguf_export.h"
#include "trainer/heap.h"
#include "trainer/models/family.h"

namespace offshoot::trainer {

bool HasTokenizer(const BaseModelFiles& files) {
  return files.is_gguf ? files.gguf_metadata.contains("tokenizer.ggml.tokens")
                       : Tokenizer::IsIn(files.path);
}

std::unique_ptr<Tokenizer> OpenTokenizer(const BaseModelFiles& files) {
  return files.is_gguf ? Tokenizer::FromGguf(files.gguf_metadata)
                       : Tokenizer::FromDirectory(files.path);
}

void SetThreads(std::int64_t threads) { at::set_num_threads(static_cast<int>(threads)); }

void CheckDevice(const std::string& device) {
  if (device == "cpu") {
    return;
  }
  const bool cuda = device == "cuda" || device.starts_with("cuda:");
  if (!cuda) {
    throw Error(Reason::kBadSpec, "device '" + device + "' is unknown; use cpu or cuda:0.");
  }
  if (!at::hasCUDA()) {
    throw Error(Reason::kBadSpec, "device " + device +
                                      " was asked for, but this trainer sees no CUDA device; use "
                                      "device cpu, or a CUDA build on a machine with a GPU.");
  }
}

PreparedJob PrepareJob(const TrainSpec& spec, const std::string& cache_directory, bool load_weights,
                       EventWriter& events) {
  CheckDevice(spec.device);
  events.Emit("stage", {{"stage", "loading"}});
  PreparedJob job;
  job.files = OpenBaseModel(spec.base_model.path);
  const std::int64_t vocab_size = ReadArchSpec(job.files.config).vocab_size;
  const std::string tokenizer_digest =
      spec.base_model.digest.empty() ? spec.base_model.path : spec.base_model.digest;
  // The weights take a thread of their own: this one keeps the thread pool's settings for training.
  events.Emit("stage", {{"stage", "tokenizing"}});
  auto tokenizing = std::async(std::launch::async, [&] {
    if (HasTokenizer(job.files)) job.tokenizer = OpenTokenizer(job.files);
    job.data = LoadData(DataOptionsFromSpec(spec.resolved, vocab_size, cache_directory),
                        job.tokenizer.get(), tokenizer_digest);
  });
  job.decoder = Decoder::Load(job.files, DecoderOptions{.dtype = spec.dtype,
                                                        .device = spec.device,
                                                        .load_weights = load_weights,
                                                        .quantisation = spec.quantisation});
  tokenizing.get();
  if (!spec.publish_gguf.empty()) {
    CheckGgufExport(job.files, job.decoder->spec(), job.tokenizer.get(), spec.publish_gguf);
  }
  TrimHeap();  // of what parsing and converting left
  return job;
}

}  // namespace offshoot::trainer
