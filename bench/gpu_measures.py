"""The benchmark of one GPU, beside PEFT on the same GPU."""

import statistics
import subprocess

import harness
import measures

LENGTH, STEPS = 2048, 10
# Llama 3.1 8B (make_models.py writes it).
LLAMA_8B = {"hidden": 4096, "layers": 32, "query": 4096, "key": 1024, "intermediate": 14336, "vocab": 128256}
# bfloat16 products per second without sparsity, as NVIDIA's data sheets have them.
PEAK_FLOPS = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}


def flops_per_token(shape, length):
    """What LoRA cannot do without: the base's products forward and back to the inputs, and causal
    attention, whose backward pass is two forward ones. Adapters are not counted."""
    hidden, query = shape["hidden"], shape["query"]
    layer = hidden * (2 * query + 2 * shape["key"] + 3 * shape["intermediate"])
    attention = 2 * length * query  # scores and their values, half of each masked
    return 4 * (shape["layers"] * layer + hidden * shape["vocab"]) + 3 * shape["layers"] * attention


def gpu():
    """The first GPU's name and peak."""
    try:
        name = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], check=True,
                              capture_output=True, text=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise harness.Failure("this benchmark needs an NVIDIA GPU, and a build with the cuda preset that "
                              "OFFSHOOT_BUILD names (OFFSHOOT_BUILD=build/cuda).") from error
    for kind, flops in PEAK_FLOPS.items():
        if kind in name:
            return name, flops
    raise harness.Failure(f"the peak of '{name}' is not known: add it to PEAK_FLOPS in bench/gpu_measures.py.")


def llama8b(bench):
    """Random weights of Llama 3.1 8B's shape on one GPU, bfloat16, rows of 2,048; MFU."""
    name, peak = gpu()
    model = bench.random_model("llama-8b")
    data = measures.random_rows(bench, STEPS, LENGTH, LLAMA_8B["vocab"])
    results, _ = bench.alternate({
        "offshoot": lambda: bench.train(
            model, data, "pretokenized", device="cuda:0", dtype="bfloat16", sequence_len=LENGTH,
            sample_packing=True, per_device_train_batch_size=1, max_steps=STEPS),
        "peft": lambda: bench.peer("peft_dense.py", "--model", model, "--device", "cuda", "--rows", 1,
                                   "--length", LENGTH, "--steps", STEPS)})
    speeds = {side: [measures.speed(r, LENGTH) for r in runs] for side, runs in results.items()}
    for side, values in speeds.items():
        bench.figure(f"{side}_tokens_per_second", statistics.median(values))
    bench.figure("device", name)
    bench.figure("peft_attention", results["peft"][0]["attention"])
    bench.bar("tokens/s against PEFT", 1.5,
              statistics.median([a / b for a, b in zip(speeds["offshoot"], speeds["peft"])]))
    bench.bar("MFU", 0.45, statistics.median(speeds["offshoot"]) * flops_per_token(LLAMA_8B, LENGTH) / peak)


ALL = {"gpu-llama8b": llama8b}
