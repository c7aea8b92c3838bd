"""The examples over several processes and devices run, and end at the gradient of one process."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
LIMIT = 150  # seconds; each takes less than 15 alone
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Open MPI refuses root and more ranks than cores unless it is told that both are meant.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}


def output_of(name: str, *launcher: str, needs: tuple[str, ...], limit: float = LIMIT) -> str:
    """Return what an example prints within `limit` seconds; none of its processes is left."""
    for module in needs:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    command = [*(launcher or [sys.executable]), str(EXAMPLES / name)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | ENVIRONMENT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"{name} took more than {limit} s:\n{output}")
    assert process.returncode == 0, output
    return output


def check(output: str, ways: int = 1) -> None:
    losses = re.findall(r"loss of \d+ samples .*: (\S+)$", output, flags=re.M)
    differences = re.findall(
        r"largest difference from the gradient .*: (\S+)$", output, flags=re.M
    )
    assert len(losses) == len(differences) == ways, output
    assert len(set(losses)) == 1
    assert all(float(loss) > 1 for loss in losses)
    assert all(float(difference) < 1e-9 for difference in differences), output
    assert "statistics of its own batch" not in output


@pytest.mark.long
def test_torchrun() -> None:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    check(output_of("ddp_torchrun.py", *run, needs=("torch",)))


@pytest.mark.long
def test_lightning() -> None:
    check(output_of("lightning_two_processes.py", needs=("torch", "lightning")))


@pytest.mark.long
def test_jax() -> None:
    check(output_of("jax_eight_devices.py", needs=("jax",)), ways=2)


def test_mpi() -> None:
    if shutil.which("mpiexec") is None:
        pytest.skip("there is no mpiexec: Open MPI is not installed")
    run = ["mpiexec", "-n", "2", sys.executable]
    check(output_of("mpi_numpy.py", *run, needs=("numpy", "mpi4py")))
