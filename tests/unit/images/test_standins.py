"""Stand-ins for CUDA's libraries: what is linked to them loads, and what calls them ends by name."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from itrain_images.sets import ROOT

TORCH = """
void cublasCreate_v2(void); void ncclGetVersion(void); void cudaGetDeviceCount(void);
int fine(void) { return 7; }
void ask(void) { cudaGetDeviceCount(); }
void multiply(void) { cublasCreate_v2(); }
void talk(void) { ncclGetVersion(); }
"""


def library(path: Path, source: str, *options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [
        "gcc",
        "-shared",
        "-fPIC",
        f"-Wl,-soname,{path.name}",
        "-o",
        path,
        "-x",
        "c",
        "-",
        "-x",
        "none",
        *options,
    ]
    subprocess.run(command, input=source, text=True, check=True)
    return path


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """torch, linked to three libraries of which one is there: cuBLAS has versions, NCCL none."""
    elsewhere, lib, runtime = tmp_path / "elsewhere", tmp_path / "site/torch/lib", tmp_path / "site/nvidia/lib"
    versions = tmp_path / "versions"
    versions.write_text("libcublas.so.13 { global: *; };")
    blas = library(elsewhere / "libcublas.so.13", "void cublasCreate_v2(void) {}", f"-Wl,--version-script={versions}")
    nccl = library(elsewhere / "libnccl.so.2", "void ncclGetVersion(void) {}")
    cudart = library(runtime / "libcudart.so.13", "void cudaGetDeviceCount(void) {}")
    search = "-Wl,-rpath,$ORIGIN:$ORIGIN/../../nvidia/lib"
    library(lib / "libtorch_python.so", TORCH, str(blas), str(nccl), str(cudart), search)
    return tmp_path / "site"


def call(site: Path, function: str) -> subprocess.CompletedProcess[str]:
    code = f"import ctypes; print(ctypes.CDLL({str(site / 'torch/lib/libtorch_python.so')!r}).{function}())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def make(site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, ROOT / "images/standins", site], capture_output=True, text=True, check=False)


def test_what_is_linked_to_cuda_loads_without_it(site: Path) -> None:
    assert "libcublas.so.13: cannot open shared object file" in call(site, "fine").stderr
    done = make(site)
    assert (done.returncode, done.stdout) == (0, "standins: 2 libraries of CUDA\n"), done.stderr
    assert sorted(path.name for path in (site / "torch/lib").iterdir()) == [
        "libcublas.so.13", "libnccl.so.2", "libtorch_python.so",
    ]  # fmt: skip
    assert call(site, "fine").stdout == "7\n"
    assert call(site, "ask").returncode == 0  # the runtime that is there stays


@pytest.mark.parametrize(("function", "named"), [
    ("multiply", "cublasCreate_v2 of libcublas.so.13"), ("talk", "ncclGetVersion of libnccl.so.2"),
])  # fmt: skip
def test_a_function_that_is_called_ends_the_process_with_its_name(site: Path, function: str, named: str) -> None:
    make(site)
    done = call(site, function)
    assert done.returncode == -signal.SIGABRT
    assert done.stderr == f"{named} was called, which an image for machines without a GPU does not have\n"


def test_the_same_libraries_are_made_each_time(site: Path) -> None:
    make(site)
    first = {path.name: path.read_bytes() for path in (site / "torch/lib").iterdir()}
    for name in first.keys() - {"libtorch_python.so"}:
        (site / "torch/lib" / name).unlink()
    make(site)
    assert {path.name: path.read_bytes() for path in (site / "torch/lib").iterdir()} == first


def test_a_library_that_still_does_not_load_ends_the_build(site: Path) -> None:
    (site / "nvidia/lib/libcudart.so.13").write_bytes(b"broken")
    assert make(site).returncode != 0
