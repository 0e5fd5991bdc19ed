"""Unpacks wheels into a LibTorch folder: unpack_libtorch.py cpu|cuda WHEELS TARGET.

cpu takes only what a CPU build links and loads, in the relative layout that the libraries' RPATH
wants; cuda takes everything.
"""

import pathlib
import stat
import sys
import zipfile

CPU_PARTS = (
    "torch/include/",
    "torch/lib/libtorch_cpu.so",
    "torch/lib/libc10.so",
    "torch/lib/libgomp.so.1",
    "nvidia/cu13/lib/libcudart.so.13",
    "nvidia/cu13/lib/libcupti.so.13",
)
CUDA_SKIPPED = ("torch/test/", "torch/testing/", "torch/_inductor/", "torch/distributed/")


def wanted(flavour: str, name: str) -> bool:
    if name.endswith("/"):
        return False
    if flavour == "cpu":
        return name.startswith(CPU_PARTS)
    return name.startswith(("torch/", "nvidia/")) and not name.startswith(CUDA_SKIPPED)


def main() -> None:
    flavour, wheels, target = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for info in archive.infolist():
                if not wanted(flavour, info.filename):
                    continue
                archive.extract(info, target)
                mode = info.external_attr >> 16
                if mode & stat.S_IXUSR:
                    (target / info.filename).chmod(0o755)
        wheel.unlink()
    if flavour == "cuda":  # FindCUDAToolkit and the linker want unversioned names
        for library in (target / "nvidia").glob("**/lib/lib*.so.*"):
            plain = library.with_name(library.name.split(".so.")[0] + ".so")
            if not plain.exists():
                plain.symlink_to(library.name)


if __name__ == "__main__":
    main()
