"""JAX arrays on many devices and in several processes, with no communicator: one array's loss."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")

TESTS = Path(__file__).parent


def start(script: str, *arguments: str, devices: int) -> subprocess.Popen:
    """Start a script of the tests in a process where JAX has so many devices."""
    flags = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.Popen(
        [sys.executable, "-W", "error", TESTS / script, *arguments],
        env=os.environ | flags,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_on_eight_devices() -> None:
    """On axes that JAX shards over by itself, and on those that `jax.make_mesh` makes."""
    with start("jax_mesh.py", devices=8) as process:
        output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert output == "right on a mesh\n"


@pytest.mark.long
def test_in_two_processes() -> None:
    """Each knows its own rows alone, and has the numbers of the whole."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [start("jax_mesh.py", str(rank), address, devices=4) for rank in range(2)]
    try:
        for process in processes:
            output, errors = process.communicate(timeout=400)
            assert process.returncode == 0, errors
            assert output.endswith("right on a mesh\n")  # after lines of gloo's
    finally:
        for process in processes:
            process.kill()
            process.communicate()
