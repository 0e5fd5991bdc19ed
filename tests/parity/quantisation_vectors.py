#!/usr/bin/env python3
"""Writes trainer/ops/testdata/quantised.safetensors: what bitsandbytes makes of some weights.

Needed only to make it again (torch, safetensors, bitsandbytes):
    python tests/parity/quantisation_vectors.py
"""
import os

import torch
from bitsandbytes import functional
from safetensors.torch import save_file

OUTPUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "trainer", "ops",
                      "testdata", "quantised.safetensors")


def main():
    torch.manual_seed(3)
    # More than one outer block (256 blocks of 64), and a last block that is not full.
    weight = torch.randn(130, 151) * torch.rand(130, 1) * 0.1
    weight[5] = 0  # blocks of nothing but zeros
    packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True,
                                             quant_type="nf4")
    tensors = {"weight": weight, "nf4": functional.dequantize_4bit(packed, state),
               "nf4_codes": packed.flatten()}
    rounded = weight.bfloat16()
    packed, state = functional.quantize_4bit(rounded, blocksize=64, compress_statistics=True,
                                             quant_type="nf4")
    tensors["nf4_bfloat16"] = functional.dequantize_4bit(packed, state)
    codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
    tensors["half"] = weight.half().float()
    tensors["int8_codes"] = codes
    tensors["int8"] = functional.int8_vectorwise_dequant(codes, scales)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, OUTPUT)


if __name__ == "__main__":
    main()
