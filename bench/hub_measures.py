"""The benchmarks of models on their way: downloads beside curl's, serving beside nginx's."""

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import statistics
import subprocess
import time

import harness

FILE_BYTES = 1 << 30
FILES = 2


@contextlib.contextmanager
def _coordinator(bench):
    """A coordinator that serves a model of large random files as bench/large; its HTTP address."""
    model = bench.scratch / "model"
    model.mkdir()
    (model / "config.json").write_text("{}", encoding="utf-8")
    generator = random.Random(1)
    for index in range(FILES):
        with open(model / f"model-{index}.safetensors", "wb") as file:
            for _ in range(FILE_BYTES >> 20):
                file.write(generator.randbytes(1 << 20))
    addresses = [bench.scratch / name for name in ("rpc", "http")]
    with open(bench.scratch / "coordinator.log", "wb") as log:
        process = subprocess.Popen(
            [harness.BUILD / "bin" / "offshoot-coordinator", "--listen", "127.0.0.1:0", "--state-dir",
             bench.scratch / "state", "--address-file", addresses[0], "--http-listen", "127.0.0.1:0",
             "--http-address-file", addresses[1], "--allowed-root", model],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        deadline = time.time() + 20
        while not all(address.exists() for address in addresses):
            if time.time() > deadline or process.poll() is not None:
                raise harness.Failure((bench.scratch / "coordinator.log").read_text())
            time.sleep(0.05)
        rpc, http = (address.read_text().strip() for address in addresses)
        bench._run([harness.BUILD / "bin" / "offshoot", "models", "register", "bench/large", "--path",
                    model, "--coordinator", rpc])
        yield model, http
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _alternate(bench, sides):
    """{name: function giving bytes/s} in turn; medians in MB/s."""
    rates = {name: [] for name in sides}
    for pair in range(bench.pairs + 1):  # the first warms the page cache and is not counted
        for name in list(sides) if pair % 2 else list(sides)[::-1]:
            rate = sides[name]()
            if pair > 0:
                rates[name].append(rate)
        if pair > 0:
            bench.say(f"pair {pair}/{bench.pairs}: " +
                      "  ".join(f"{n} {r[-1] / 1e6:.0f} MB/s" for n, r in rates.items()))
    ratios = [ours / peer for ours, peer in zip(*rates.values())]
    for name, values in rates.items():
        bench.figure(f"{name}_mb_per_second", round(statistics.median(values) / 1e6))
    return statistics.median(ratios)


def _curl(urls, outputs):
    """curl's rate for all of the URLs at once, as bytes/s."""
    words = ["curl", "--no-progress-meter", "--fail", "--parallel"]
    for url, output in zip(urls, outputs):
        words += ["--output", str(output), url]
    begin = time.time()
    subprocess.run(words, check=True)
    return FILES * FILE_BYTES / (time.time() - begin)


def download(bench):
    """A model of two 1 GiB files from a local server into the cache, digests checked, beside curl."""
    with _coordinator(bench) as (_, http):
        cache = bench.scratch / "hub"
        urls = [f"http://{http}/bench/large/resolve/main/model-{i}.safetensors" for i in range(FILES)]

        def ours():
            shutil.rmtree(cache, ignore_errors=True)
            text, _, peak = bench._run(
                [harness.BUILD / "bin" / "hub_bench", "bench/large"],
                env={**os.environ, "HF_ENDPOINT": f"http://{http}", "HF_HUB_CACHE": str(cache)})
            bench.figure("peak_memory_mib", round(peak / 2**20))
            run = json.loads(text.splitlines()[-1])
            shutil.rmtree(cache)
            return run["bytes"] / run["seconds"]

        def curl():
            outputs = [bench.scratch / f"curl-{i}" for i in range(FILES)]
            rate = _curl(urls, outputs)
            for output in outputs:
                output.unlink()
            return rate

        bench.bar("download against curl's", 0.9, _alternate(bench, {"offshoot": ours, "curl": curl}))


def serving(bench):
    """Two 1 GiB files from the coordinator's HTTP port to curl, beside nginx with sendfile."""
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    if not pathlib.Path(nginx).exists():
        raise harness.Failure("nginx is not installed: apt-get install nginx-light")
    with _coordinator(bench) as (model, http):
        folder = bench.scratch / "nginx"
        folder.mkdir()
        port = _free_port()
        (folder / "nginx.conf").write_text(f"""
worker_processes {os.cpu_count()}; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{ access_log off; sendfile on; tcp_nopush on; client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{ listen 127.0.0.1:{port}; root {model}; }} }}
""", encoding="utf-8")
        model.chmod(0o755)
        bench.scratch.chmod(0o755)
        process = subprocess.Popen([nginx, "-c", folder / "nginx.conf", "-e", folder / "error.log"],
                                   stdin=subprocess.DEVNULL)
        try:
            time.sleep(0.5)
            names = [f"model-{i}.safetensors" for i in range(FILES)]
            nowhere = ["/dev/null"] * FILES
            ours = [f"http://{http}/bench/large/resolve/main/{name}" for name in names]
            peer = [f"http://127.0.0.1:{port}/{name}" for name in names]
            ratio = _alternate(bench, {"offshoot": lambda: _curl(ours, nowhere),
                                       "nginx": lambda: _curl(peer, nowhere)})
        finally:
            process.terminate()
            process.wait()
        bench.bar("serving against nginx's", 0.9, ratio)


ALL = {"download": download, "serving": serving}
