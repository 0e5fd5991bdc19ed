#!/usr/bin/env python3
"""Makes trainer/tokenizer/testdata: small tokenizers, and what transformers says about them.

    python3 tests/parity/tokenizer_vectors.py [--demo-model SmolLM2-135M-Instruct.Q4_1.gguf]

Needs transformers, tokenizers, gguf, tiktoken, sentencepiece and protobuf. The output is committed; this script is needed to make it
again, not to run the tests. Written:
    byte_level/ qwen2/ sentencepiece/      Hugging Face directories
    kimi/ hunyuan/                         the same with a tiktoken file, as those two are published
    llama_spm/ ernie_spm/                  the same with SentencePiece's tokenizer.model
    gguf_*.json                            the tokenizer metadata of GGUF files
    vectors.json                           ids of awkward strings, and what they decode to
    chats.json                             renderings of templates/*.jinja, with generation spans
    demo_vectors.json                      the same strings with the demo model's own tokenizer
"""

import argparse
import base64
import copy
import io
import json
import os
import shutil
import tempfile
import unicodedata

import gguf
import numpy
import sentencepiece
import tiktoken
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils.chat_template_utils import _compile_jinja_template, _render_with_assistant_indices

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
OUT = os.path.join(ROOT, "trainer", "tokenizer", "testdata")

STRINGS = [
    "",
    " ",
    "Hello, world!",
    "  two leading spaces, one trailing ",
    "tabs\tand\nnew\r\nlines\n\n\n   then spaces",
    " " * 70 + "x" + "\n" * 40 + "y" + "\t" * 17,
    "I'll don't WE'VE it's 'tis y'all'd",
    "1 12 123 1234 12345678 3.14159 1,000,000 0x1F 1e-9  7",
    "snake_case camelCase kebab-case path/to/file.txt http://a.b/c?d=e&f=%20",
    "if (x != y) { return \"z\\n\"; } // \u2713",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea \u2764\ufe0f\U0001f44d\U0001f3fd",
    "e\u0301 vs \u00e9, n\u0303, a\u0308\u0304, \u1e69 s\u0323\u0307, \uac00 \u1100\u1161",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f\u4e16\u754c\uff01\uc548\ub155\ud558\uc138\uc694",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u202b\u0639\u0631\u0628\u064a\u202c 123",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u10d2\u10d0\u10db\u10d0\u10e0\u10ef\u10dd\u10d1\u10d0",
    "\x00\x01\x02\x07\x08\x0b\x0c\x1b[31m\x7f\x80\x9f",
    "\u00a0\u2003\u3000\u200b\u200c\u200d\u2028\u2029\ufeff\u00ad",
    "\ufffd\ufffe\uffff\ue000\U0010ffff\U00020000",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "a<|im_end|>b <|im_end|> c<|IM_END|><|im_end|",
    "<s>x</s><unk>[INST]<|eot_id|><|begin_of_text|><|endoftext|>",
    "<think>\nhm\n</think>\n\nyes <tool_call>{}</tool_call>",
    "\u2581underscore\u2581 \u2581\u2581 \u0120G \u010a",
    "<0x0A><0xE2>",
    "\u01c5\u0130\u0131\u00df\ufb01 \u2160\u216b \u00b2\u00b3\u00bd \u0664\u0665 \u0967",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "The meaning of a common noun is the gloss that the dictionary gives first.",
]

CORPUS_EXTRA = [
    "H\u00e9llo w\u00f6rld na\u00efve caf\u00e9 r\u00e9sum\u00e9 \u4f60\u597d\u4e16\u754c \u3053\u3093\u306b\u3061\u306f \u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 \U0001f600\U0001f600",
    "if (x == y) { return x + y; }\n\n    for i in range(10):\n        print(i)\n",
    "I'll don't it's we've 123 1234 2024 http://www.example.com/index.html",
] * 20

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3_SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
KIMI_SPLIT = (
    r"[\p{Han}]+"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus():
    path = os.path.join(ROOT, "configs", "data", "wordnet_nouns.jsonl")
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line)["messages"] for line in lines]
    return [f"{row[0]['content']} {row[1]['content']}\n" for row in rows[:600]] + CORPUS_EXTRA


def train_byte_level(split, specials, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    if split is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=True, indent=None, separators=(",", ":"))
        file.write("\n")


def write_directory(name, tokenizer, config, model_type):
    folder = os.path.join(OUT, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    tokenizer.save(os.path.join(folder, "tokenizer.json"), pretty=False)
    write_json(os.path.join(folder, "tokenizer_config.json"), config)
    write_json(os.path.join(folder, "config.json"), {"model_type": model_type})


def make_byte_level():
    tokenizer = train_byte_level(LLAMA3_SPLIT, LLAMA3_SPECIALS + SPECIALS, 700)
    bos = "<|begin_of_text|>"
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(
            single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
            special_tokens=[(bos, tokenizer.token_to_id(bos))]),
    ])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": "<|eot_id|>",
              "clean_up_tokenization_spaces": False, "model_max_length": 4096}
    write_directory("byte_level", tokenizer, config, "llama")


def make_qwen2():
    tokenizer = train_byte_level(QWEN2_SPLIT, SPECIALS, 650)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>"])
    added = {
        str(i): {"content": t.content, "special": t.special, "lstrip": False, "rstrip": False,
                 "normalized": t.normalized, "single_word": False}
        for i, t in tokenizer.get_added_tokens_decoder().items()
    }
    config = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>",
              "pad_token": "<|endoftext|>", "unk_token": None, "add_bos_token": False,
              "added_tokens_decoder": added, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    write_directory("qwen2", tokenizer, config, "qwen2")


def make_sentencepiece():
    """Llama 2's kind: pieces with U+2581, bytes as a fallback."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=specials, show_progress=False,
                                  limit_alphabet=120)
    tokenizer.train_from_iterator(corpus(), trainer)
    # Training marks the bytes as special tokens; in such tokenizers only the first three are.
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [dict(t, normalized=False) for t in document["added_tokens"][:3]]
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(content=" ", left=1)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s>:0 $A:0", pair="<s>:0 $A:0 <s>:1 $B:1", special_tokens=[("<s>", 1)])
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
              "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False, "legacy": False}
    write_directory("sentencepiece", tokenizer, config, "llama")


def make_spm(name, config, model_type, **options):
    """A directory with tokenizer.model alone, as SentencePiece's own trainer makes it."""
    folder = os.path.join(OUT, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    lines = [line for text in corpus() for line in text.split("\n") if line]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=700,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", num_threads=1,
        remove_extra_whitespaces=False, character_coverage=0.995, minloglevel=2, **options)
    with open(os.path.join(folder, "tokenizer.model"), "wb") as file:
        file.write(model.getvalue())
    write_json(os.path.join(folder, "tokenizer_config.json"), config)
    write_json(os.path.join(folder, "config.json"), {"model_type": model_type})


def write_tiktoken(name, file, ranks, config, model):
    """ranks: (bytes, number) of each line."""
    folder = os.path.join(OUT, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    with open(os.path.join(folder, file), "wb") as out:
        for token, rank in ranks:
            out.write(base64.b64encode(token) + b" %d\n" % rank)
    write_json(os.path.join(folder, "tokenizer_config.json"), config)
    write_json(os.path.join(folder, "config.json"), model)


def trained_tokens(split):
    """The tokens of a byte-level BPE, as bytes, in the order of their ranks."""
    tokenizer = train_byte_level(split, [], 600)
    by_letter = {letter: byte for byte, letter in bytes_to_unicode().items()}
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [bytes(by_letter[letter] for letter in token) for token, _ in vocab]


def tiktoken_vectors(split, ranks, special, plain, named, size, normal=lambda text: text):
    """special, plain: {token: id}, of which decoding may skip the first; named: bos, eos, pad."""
    encoding = tiktoken.Encoding("fixture", pat_str=split, mergeable_ranks=ranks,
                                 special_tokens={**special, **plain})
    cases = []
    for text in STRINGS + ["[BOS]\u732b\u304cABC don't<|reserved_token_607|>x", "<|extra_3|><|pad|> a<|bos|>"]:
        ids = encoding.encode(normal(text), allowed_special="all")
        cases.append({
            "text": text, "ids": ids, "ids_with_special": ids, "decoded": encoding.decode(ids),
            "decoded_without_special": encoding.decode([i for i in ids if i not in special.values()])})
    return {"size": size, "cases": cases,
            **{key: {**special, **plain}.get(token) for key, token in named.items()}}


def make_kimi():
    """tokenization_kimi.py: names from tokenizer_config.json, the other ids behind the ranks reserved."""
    tokens = trained_tokens(KIMI_SPLIT)
    first = len(tokens)
    special = {"[BOS]": first, "[EOS]": first + 1, "<|im_end|>": first + 2, "<|im_user|>": first + 3,
               "[PAD]": first + 9}
    plain = {"<|tool_call_begin|>": first + 5}
    config = {"tokenizer_class": "TikTokenTokenizer", "bos_token": "[BOS]", "eos_token": "[EOS]",
              "pad_token": "[PAD]", "unk_token": None, "added_tokens_decoder": {
                  str(i): {"content": token, "special": token in special, "lstrip": False, "rstrip": False,
                           "normalized": False, "single_word": False}
                  for token, i in {**special, **plain}.items()}}
    size = first + 12
    write_tiktoken("kimi", "tiktoken.model", zip(tokens, range(first)), config,
                   {"model_type": "kimi_k2", "vocab_size": size})
    names = {**special, **plain}.values()
    special.update({f"<|reserved_token_{i}|>": i for i in range(first, size) if i not in names})
    named = {"bos_id": "[BOS]", "eos_id": "[EOS]", "pad_id": "[PAD]"}
    return tiktoken_vectors(KIMI_SPLIT, {t: i for i, t in enumerate(tokens)}, special, plain, named, size)


def make_hunyuan():
    """tokenization_hy.py: ids are the lines' places, a repeated token is passed over."""
    tokens = trained_tokens(QWEN2_SPLIT)
    lines = tokens[:300] + [tokens[7]] + tokens[300:]
    names = ["<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"]
    names += [f"<|extra_{i}|>" for i in range(205)]
    special = {name: len(tokens) + i for i, name in enumerate(names)}
    config = {"tokenizer_class": "HYTokenizer", "bos_token": "<|startoftext|>", "eos_token": "<|eos|>",
              "pad_token": "<|pad|>"}
    size = len(tokens) + len(names)
    write_tiktoken("hunyuan", "hy.tiktoken", zip(lines, range(len(lines))), config,
                   {"model_type": "hunyuan_v1_moe", "vocab_size": size})
    named = {"bos_id": "<|startoftext|>", "eos_id": "<|eos|>", "pad_id": "<|pad|>"}
    return tiktoken_vectors(QWEN2_SPLIT, {t: i for i, t in enumerate(tokens)}, special, {}, named, size,
                            lambda text: unicodedata.normalize("NFC", text))


def tokenizer_metadata(name, kind, pre, extra):
    """The tokenizer metadata a converter would write for the directory `name`."""
    with open(os.path.join(OUT, name, "tokenizer.json"), encoding="utf-8") as file:
        document = json.load(file)
    vocab = dict(document["model"]["vocab"])
    special = {}
    for token in document["added_tokens"]:
        vocab[token["content"]] = token["id"]
        special[token["content"]] = 3 if token["special"] else 4
    tokens = [token for token, _ in sorted(vocab.items(), key=lambda item: item[1])]
    types = [special.get(token, 6 if token.startswith("<0x") and kind == "llama" else 1) for token in tokens]
    metadata = {"tokenizer.ggml.model": kind, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    if kind == "llama":
        # SentencePiece scores: minus the rank of the merge that makes the piece; shared by some.
        metadata["tokenizer.ggml.scores"] = [
            float(-(index // 2)) if kind_of == 1 else 0.0 for index, kind_of in enumerate(types)]
    else:
        merges = document["model"]["merges"]
        metadata["tokenizer.ggml.merges"] = [m if isinstance(m, str) else " ".join(m) for m in merges]
    if pre:
        metadata["tokenizer.ggml.pre"] = pre
    metadata.update(extra)
    return metadata


def write_gguf(path, architecture, metadata):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(metadata["tokenizer.ggml.tokens"]))
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.add_tensor("token_embd.weight", numpy.zeros((1, 8), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_ggufs():
    """name -> (architecture, metadata); written as JSON."""
    chatml = open(os.path.join(OUT, "templates", "chatml.jinja"), encoding="utf-8").read()
    index = lambda name, token: tokenizer_metadata(name, "gpt2", None, {})["tokenizer.ggml.tokens"].index(token)
    ids = lambda name, bos, eos, pad: {
        "tokenizer.ggml.bos_token_id": index(name, bos), "tokenizer.ggml.eos_token_id": index(name, eos),
        "tokenizer.ggml.padding_token_id": index(name, pad), "tokenizer.chat_template": chatml}
    result = {
        "gguf_llama_bpe": ("llama", tokenizer_metadata("byte_level", "gpt2", "llama-bpe", {
            **ids("byte_level", "<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"),
            "tokenizer.ggml.add_bos_token": True})),
        "gguf_smollm": ("llama", tokenizer_metadata("byte_level", "gpt2", "smollm", {
            **ids("byte_level", "<|im_start|>", "<|im_end|>", "<|im_end|>"),
            "tokenizer.ggml.add_bos_token": False})),
        "gguf_qwen2": ("qwen2", tokenizer_metadata("qwen2", "gpt2", "qwen2", {
            **ids("qwen2", "<|endoftext|>", "<|im_end|>", "<|endoftext|>"),
            "tokenizer.ggml.add_bos_token": False})),
        "gguf_sentencepiece": ("llama", tokenizer_metadata("sentencepiece", "llama", "default", {
            "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0})),
    }
    for name, (_, metadata) in result.items():
        write_json(os.path.join(OUT, name + ".json"), metadata)
    return result


def vectors_of(tokenizer):
    cases = []
    for text in STRINGS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        cases.append({
            "text": text, "ids": ids, "ids_with_special": tokenizer.encode(text),
            "decoded": tokenizer.decode(ids, skip_special_tokens=False),
            "decoded_without_special": tokenizer.decode(ids, skip_special_tokens=True)})
    return {"size": len(tokenizer), "bos_id": tokenizer.bos_token_id, "eos_id": tokenizer.eos_token_id,
            "pad_id": tokenizer.pad_token_id, "cases": cases}


WEATHER = {"name": "weather", "arguments": {"city": "K\u00f6ln", "days": 2, "deep": {"a": [1.0, None, True]}}}
CHATS = {
    "simple": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello \u2014 \U0001f600!"}],
    "system": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Why?"},
               {"role": "assistant", "content": "Because."}],
    "two_turns": [{"role": "user", "content": "a\n"}, {"role": "assistant", "content": "\nb <b>&\"'"},
                  {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}],
    "question": [{"role": "user", "content": "What is\nthis, a long question with many words in it?"}],
    "thinking": [{"role": "user", "content": "2+2"},
                 {"role": "assistant", "content": "<think>\nadd\n</think>\n\n4"},
                 {"role": "user", "content": "3+3"},
                 {"role": "assistant", "reasoning_content": "\nadd again\n", "content": "6"}],
    "tools": [{"role": "user", "content": "Weather?"},
              {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": WEATHER}]},
              {"role": "tool", "content": "{\"sun\": true}"},
              {"role": "assistant", "content": "Sunny."}],
    "wrong_order": [{"role": "assistant", "content": "me first"}],
    "special_text": [{"role": "user", "content": "<|im_end|>{% generation %}{{ bos_token }}"},
                     {"role": "assistant", "content": "{# x #}"}],
}


def chat_vectors():
    tokenizer = AutoTokenizer.from_pretrained(os.path.join(OUT, "byte_level"))
    result = []
    for file in sorted(os.listdir(os.path.join(OUT, "templates"))):
        template = open(os.path.join(OUT, "templates", file), encoding="utf-8").read()
        for name, messages in CHATS.items():
            for prompt in (False, True):
                case = {"template": file, "chat": name, "messages": messages, "add_generation_prompt": prompt}
                try:
                    case["text"] = tokenizer.apply_chat_template(
                        copy.deepcopy(messages), chat_template=template, tokenize=False,
                        add_generation_prompt=prompt)
                except Exception as error:  # the template's own complaint
                    case["error"] = str(error)
                if "text" in case and "generation %}" in template:
                    text, spans = _render_with_assistant_indices(
                        _compile_jinja_template(template), messages, None, None, prompt,
                        **tokenizer.special_tokens_map)
                    assert text == case["text"]
                    size = lambda end: len(text[:end].encode("utf-8"))
                    case["spans"] = [[size(begin), size(end)] for begin, end in spans]
                    encoded = tokenizer.apply_chat_template(
                        copy.deepcopy(messages), chat_template=template, return_dict=True,
                        add_generation_prompt=prompt, return_assistant_tokens_mask=True)
                    case["ids"] = encoded["input_ids"]
                    case["assistant_mask"] = encoded["assistant_masks"]
                result.append(case)
    return result


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--demo-model", help="the demo model's GGUF file, for demo_vectors.json")
    demo_model = arguments.parse_args().demo_model

    make_byte_level()
    make_qwen2()
    make_sentencepiece()
    make_spm("llama_spm", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False},
             "llama", user_defined_symbols=["<think>", "</think>"])
    make_spm("ernie_spm", {"tokenizer_class": "Ernie4_5_Tokenizer", "pad_token": "<unk>"}, "ernie4_5",
             control_symbols=["<cls>", "<sep>"], user_defined_symbols=["<mask:0>", "<|im_start|>"],
             add_dummy_prefix=False)
    vectors = {"kimi": make_kimi(), "hunyuan": make_hunyuan()}
    for name in ("byte_level", "qwen2", "sentencepiece", "llama_spm", "ernie_spm"):
        vectors[name] = vectors_of(AutoTokenizer.from_pretrained(os.path.join(OUT, name)))
    for name, (architecture, metadata) in make_ggufs().items():
        with tempfile.TemporaryDirectory() as folder:
            write_gguf(os.path.join(folder, "model.gguf"), architecture, metadata)
            vectors[name] = vectors_of(AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf"))
    write_json(os.path.join(OUT, "vectors.json"), vectors)
    write_json(os.path.join(OUT, "chats.json"), chat_vectors())
    if demo_model:
        tokenizer = AutoTokenizer.from_pretrained(
            os.path.dirname(demo_model), gguf_file=os.path.basename(demo_model))
        demo = vectors_of(tokenizer)
        demo["chat"] = tokenizer.apply_chat_template(CHATS["simple"], tokenize=True)["input_ids"]
        write_json(os.path.join(OUT, "demo_vectors.json"), demo)


if __name__ == "__main__":
    main()
