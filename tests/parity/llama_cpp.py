"""The real llama.cpp, from the xllamacpp package, as a judge of GGUF files."""
import json

import torch
import xllamacpp


def next_token_log_probs(path, rows, vocabulary, adapter=None):
    """[rows, vocabulary] float32: log probabilities of the token after each list of ids or text, with
    float32 keys and values. adapter: a GGUF LoRA file."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx = 256
    parameters.n_parallel = 1
    parameters.warmup = False
    parameters.fit_params = False
    parameters.verbosity = 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = (
        xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED)
    if adapter is not None:
        lora = xllamacpp.CommonAdapterLoraInfo()
        lora.path = str(adapter)
        lora.scale = 1.0
        parameters.lora_adapters = [lora]
    server = xllamacpp.Server(parameters)
    result = torch.full((len(rows), vocabulary), float("nan"))
    for row, prompt in enumerate(rows):
        # A next token that is half a character would come without probabilities. The bias counts for
        # the choice only.
        answer = server.handle_completions({"prompt": prompt, "n_predict": 1, "n_probs": vocabulary,
                                            "temperature": 0.0, "cache_prompt": False,
                                            "logit_bias": [["a", 1e4]]})
        answer = json.loads(answer) if isinstance(answer, str) else answer
        for token in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            result[row, token["id"]] = token["logprob"]
    return result
