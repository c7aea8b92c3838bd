"""``vicreg verify --distributed``: real ranks, and gather layers as people write them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("sklearn")

from test_command import refused, run

from vicreg.tools.loading import Target
from vicreg.tools.processes import Limits
from vicreg.tools.verification.definition import DEFINITIONS
from vicreg.tools.verification.distributed.batches import Batch
from vicreg.tools.verification.distributed.comparison import (
    compared,
    relative_error,
    whole_by_definition,
)
from vicreg.tools.verification.distributed.job import Job, Question, read_answers, write_job
from vicreg.tools.verification.distributed.launching import run_ranks

#: The rows of a single rank.
QUESTION = Question(Batch((9,), 12, 0), convention="official", moving=True)

LOSSES = '''
"""One loss, and gather layers of every kind in front of it."""

import os
import time

import torch
import torch.distributed as dist


def terms(x, y):
    n, d = x.shape
    x, y = x - x.mean(0), y - y.mean(0)
    hinge = [torch.relu(1 - torch.sqrt(z.var(0) + 1e-4)).mean() for z in (x, y)]
    off = ~torch.eye(d, dtype=torch.bool)
    squares = [((z.T @ z / (n - 1))[off] ** 2).sum() / d for z in (x, y)]
    return 25 * sum(hinge) / 2 + sum(squares)


def invariance(x, y):
    return 25 * ((x - y) ** 2).mean()


def local(x, y):
    return invariance(x, y) + terms(x, y)


class Gather(torch.autograd.Function):
    """Any number of rows; the backward pass adds up the gradients of all ranks."""

    @staticmethod
    def forward(ctx, z):
        rows = [torch.zeros((), dtype=torch.int64) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, torch.tensor(len(z)))
        ctx.rows = [int(n) for n in rows]
        padded = torch.cat([z, z.new_zeros(max(ctx.rows) - len(z), z.shape[1])])
        parts = [torch.zeros_like(padded) for _ in rows]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, ctx.rows)])

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return own(ctx, gradient)


def own(ctx, gradient):
    start = sum(ctx.rows[: dist.get_rank()])
    return gradient[start : start + ctx.rows[dist.get_rank()]]


class OwnSlice(Gather):
    @staticmethod
    def backward(ctx, gradient):
        return own(ctx, gradient)


class Averaged(Gather):
    @staticmethod
    def backward(ctx, gradient):
        return Gather.backward(ctx, gradient) / dist.get_world_size()


class Doubled(Gather):
    @staticmethod
    def backward(ctx, gradient):
        return Gather.backward(ctx, gradient) * dist.get_world_size()


def loss_with(gather):
    return lambda x, y: local(gather.apply(x), gather.apply(y))


exact, own_slice = loss_with(Gather), loss_with(OwnSlice)
averaged, doubled = loss_with(Averaged), loss_with(Doubled)


def local_invariance(x, y):
    return invariance(x, y) + terms(Gather.apply(x), Gather.apply(y))


def local_invariance_own_slice(x, y):
    return invariance(x, y) + terms(OwnSlice.apply(x), OwnSlice.apply(y))


def even_rows(x, y):
    if len({int(n) for n in all_rows(x)}) > 1:
        raise ValueError("as many rows on each rank, please")
    return exact(x, y)


def all_rows(z):
    rows = [torch.zeros((), dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, torch.tensor(len(z)))
    return rows


def by_rank(x, y):
    return exact(x, y) * (1 + dist.get_rank())


def hangs(x, y):
    if dist.get_rank() == 1:
        time.sleep(600)
    return exact(x, y)


def hangs_alone(x, y):
    while True:
        time.sleep(1)


def raises(x, y):
    if dist.get_rank() == 1:
        raise ValueError("not on this rank")
    return exact(x, y)


def dies(x, y):
    if dist.get_rank() == 1:
        os._exit(7)
    return exact(x, y)


def detached(x, y):
    return exact(x, y).detach()


def refuses(x, y):
    raise ValueError("never")


def in_float32(x, y):
    return exact(x.float(), y.float())
'''


@pytest.fixture
def losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of somebody's own, importable from the current directory."""
    pytest.importorskip("torch")
    (tmp_path / "losses_to_verify.py").write_text(LOSSES)
    monkeypatch.chdir(tmp_path)
    return "losses_to_verify"


def verify(losses: str, name: str, *arguments: str, ranks: int = 2):
    target = ("--target", f"{losses}:{name}")
    return run("verify", "--distributed", str(ranks), *target, *arguments, width=200)


def test_this_package_is_exact() -> None:
    pytest.importorskip("torch")
    result = run("verify", "--distributed", "2", "--convention", "official")
    assert result.exit_code == 0, result.output
    assert "All agree with one process." in result.stdout
    for rows in ("5, 2 ", "6, 6 ", "1, 7 ", "0, 5 "):
        assert f"  {rows}" in result.stdout
    assert "float32" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "%" in result.stderr


def test_what_is_wrong_is_said_and_written(losses: str, tmp_path: Path) -> None:
    data, text = tmp_path / "report.json", tmp_path / "report.md"
    files = ("--json", str(data), "--markdown", str(text))
    result = verify(losses, "local_invariance_own_slice", *files)
    assert result.exit_code == 1, result.output
    said = result.stdout
    assert "Not all agree with one process." in said
    assert "With uneven rows (5, 2):" in said
    assert "With even rows (6, 6):" in said
    assert said.count("Its invariance term is computed from each rank's own rows") == 3
    assert said.count("ts variance and covariance terms are 1/W = 1/2 of the whole batch's") == 2
    assert said.count("gives a rank the derivative of its own value only") == 2
    assert said.count("its mean over the ranks is right") == 1

    report = json.loads(data.read_text())
    assert report["passed"] is False
    assert (report["ranks"], report["library"], report["device"]) == (2, "torch", "cpu")
    assert {"vicreg", "torch"} <= set(report["versions"])
    assert [group["rows"] for group in report["rows"]] == [[5, 2], [6, 6]]
    for group in report["rows"]:
        assert group["failure"] == ""
        assert len(group["findings"]) == 3
        for batch in group["batches"]:
            assert batch["gradient_error"] > 0.3
            assert batch["value_error"] > 1e-6
            assert batch["passed"] is False
    assert "Not all agree." in text.read_text()
    assert "| 5, 2 | 7 × 15 | float64 |" in text.read_text()


RIGHT, WRONG = 0, 1
ALONE = "that of each rank's own rows alone"
LOST = "gives a rank the derivative of its own value only"


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("exact", RIGHT, ("All agree with one process.",)),
        ("in_float32", RIGHT, ("All agree", "float32")),
        ("local", WRONG, (f"The value is {ALONE}", f"The gradient is {ALONE}")),
        ("own_slice", WRONG, ("The gradient is 1/W = 1/3 of the whole batch's: 67 % off.", LOST)),
        ("averaged", WRONG, ("The gradient is 1/W = 1/3 of the whole batch's: 67 % off.", LOST)),
        (
            "doubled",
            WRONG,
            (
                "The gradient is W = 3 times the whole batch's: 200 % off.",
                "gives W = 3 times the derivative of the ranks' values",
            ),
        ),
        (
            "local_invariance",
            WRONG,
            (
                "The gradient is up to",
                "Its invariance term is computed from each rank's own rows.",
                "; its mean over the ranks is right.",
            ),
        ),
        ("by_rank", WRONG, ("The value is 1, 2, 3 times the whole batch's, by rank",)),
        (
            "even_rows",
            WRONG,
            (
                "No result: even_rows raised ValueError: as many rows on each rank, please",
                "It is right for even rows only",
            ),
        ),
        ("raises", WRONG, ("raises raised ValueError: not on this rank", ", on rank 1; the")),
        ("dies", WRONG, ("No result: rank 1 died (exit status 7)",)),
    ],
)
def test_gather_layers_of_every_kind(
    name: str, status: int, words: tuple[str, ...], losses: str
) -> None:
    result = verify(losses, name, ranks=3)
    assert result.exit_code == status, result.output
    for part in words:
        assert part in result.stdout


@pytest.mark.long
def test_even_rows_mend_a_local_invariance(losses: str) -> None:
    said = verify(losses, "local_invariance").stdout
    even = said.partition("With even rows")[2]
    assert "The gradient" not in even
    assert "The value" in even


@pytest.mark.long
def test_ranks_that_hang_are_stopped(losses: str) -> None:
    began = time.monotonic()
    result = verify(losses, "hangs", "--timeout", "3")
    assert result.exit_code == 1
    assert "No result: rank 1 hangs: stopped after 3 s (rank 1 in hangs, losses_to_verify.py:" in (
        result.stdout
    )
    assert time.monotonic() - began < 60


def test_ranks_that_do_not_start() -> None:
    ran = run_ranks(Job("torch", None, "cpu", [QUESTION], 1.0), 2, Limits(start=0.1))
    assert ran.answers == []
    assert ran.failure == "all ranks did not start within 0.1 s"


@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.parametrize("loss", ["package", "own", "detached"])
def test_a_single_rank_in_this_process(
    library: str, loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker itself: its answers are those of the definition."""
    pytest.importorskip(library)
    from vicreg.tools.verification.distributed import worker

    (tmp_path / "own_loss_of_one.py").write_text(
        "import vicreg\n"
        "own = vicreg.vicreg_loss\n"
        "def detached(x, y):\n    return float(own(x, y))\n"
    )
    monkeypatch.chdir(tmp_path)
    question = QUESTION if loss == "package" else replace(QUESTION, convention=None)
    target = None if loss == "package" else Target(f"own_loss_of_one:{loss}")
    folder = tmp_path / "0"
    folder.mkdir()
    write_job(Job(library, target, "cpu", [question], 60.0), tmp_path / "job.json")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    statuses: list[int] = []
    monkeypatch.setattr(worker, "_leave", statuses.append)
    monkeypatch.setattr(worker, "end_with_parent", lambda: None)
    try:
        worker.main(tmp_path / "job.json", folder)
    finally:
        _leave_the_group()
    if loss == "detached":
        assert statuses[0] == 1
        assert json.loads((folder / "error.json").read_text())["line"].startswith("detached r")
        return
    assert statuses == [0]
    (answer,) = read_answers(folder, 2)
    truth = whole_by_definition(QUESTION.batch, DEFINITIONS["official"], (25.0, 25.0, 1.0))
    assert float(answer["value"]) == pytest.approx(truth.value, rel=1e-12)
    assert relative_error(answer["rows"], truth.rows) < 1e-12
    compared_with = compared(QUESTION, truth, [answer])
    assert compared_with.passed
    assert compared_with.gradient_error < 1e-12
    along = float((truth.rows * QUESTION.batch.direction).sum())
    assert answer["moves"] == pytest.approx([along], rel=1e-5)


def _leave_the_group() -> None:
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.mark.long
def test_a_process_that_hangs_alone(losses: str, jax_losses: str) -> None:
    options = ("--timeout", "2")
    result = verify(losses, "hangs_alone", *options)
    refused(result, "in one process: the process hangs: stopped after 2 s (in hangs_alone, losses")
    said = verify(jax_losses, "hangs", *options, "--backend", "jax").stdout
    assert "No result: the process hangs: stopped after 2 s (in hangs, jax_losses_to_ver" in said


@pytest.mark.long
def test_what_fails_in_one_process_is_no_finding(losses: str) -> None:
    refused(verify(losses, "refuses"), "in one process: refuses raised ValueError: never")
    refused(verify(losses, "detached"), "in one process", "a value without a gradient")
    refused(verify(losses, "absent"), "has no 'absent'")


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(
    how: signal.Signals, losses: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # one that is killed removes no files
    command = [Path(sys.executable).with_name("vicreg"), "verify", "--distributed", "2"]
    command += ["--target", f"{losses}:hangs", "--timeout", "60"]
    # The tests may have been started where Ctrl-C is ignored, as by nohup.
    heeding = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    heeding += "os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", heeding, *command], stderr=subprocess.PIPE, text=True
    )
    workers: set[str] = set()
    end = time.monotonic() + 60
    while len(workers) < 2 and time.monotonic() < end:
        time.sleep(0.1)
        workers = _children(process.pid)
    time.sleep(1.0)
    workers |= _children(process.pid)
    process.send_signal(how)
    _, said = process.communicate(timeout=30)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert said.strip().endswith("vicreg: stopped")
    while any(_is_running(number) for number in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(_is_running(number) for number in workers)


def _children(number: int) -> set[str]:
    return set(Path(f"/proc/{number}/task/{number}/children").read_text().split())


def _is_running(number: str) -> bool:
    status = Path(f"/proc/{number}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


JAX_LOSSES = """
import time

import jax
import jax.numpy as jnp
from jax import lax


def invariance(x, y):
    return 25 * ((x - y) ** 2).mean()


def terms(x, y):
    n, d = x.shape
    x, y = x - x.mean(0), y - y.mean(0)
    hinge = [jax.nn.relu(1 - jnp.sqrt(z.var(0, ddof=1) + 1e-4)).mean() for z in (x, y)]
    squares = [(((z.T @ z) * (1 - jnp.eye(d)) / (n - 1)) ** 2).sum() / d for z in (x, y)]
    return 25 * sum(hinge) / 2 + sum(squares)


def gathered(z):
    return lax.all_gather(z, "ranks", tiled=True)


def exact(x, y):
    x, y = gathered(x), gathered(y)
    return invariance(x, y) + terms(x, y)


def averaged(x, y):
    return lax.pmean(invariance(x, y) + terms(x, y), "ranks")


def summed(x, y):
    return lax.psum(exact(x, y), "ranks")


def hangs(x, y):
    while lax.axis_size("ranks") > 1:
        time.sleep(1)
    return exact(x, y)


def stopped(x, y):
    def own_slice(z):
        start = lax.axis_index("ranks") * len(z)
        return lax.dynamic_update_slice_in_dim(lax.stop_gradient(gathered(z)), z, start, 0)

    x, y = own_slice(x), own_slice(y)
    return invariance(x, y) + terms(x, y)
"""


@pytest.fixture
def jax_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("jax")
    (tmp_path / "jax_losses_to_verify.py").write_text(JAX_LOSSES)
    monkeypatch.chdir(tmp_path)
    return "jax_losses_to_verify"


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        pytest.param("exact", RIGHT, ("All agree",), marks=pytest.mark.long),
        pytest.param(
            "averaged",
            WRONG,
            (
                "The value is the mean over the ranks of the losses of their own rows",
                f"The gradient is {ALONE}",
            ),
            marks=pytest.mark.long,
        ),
        pytest.param(
            "summed", WRONG, ("The gradient is W = 2 times the",), marks=pytest.mark.long
        ),
        pytest.param(
            "stopped",
            WRONG,
            ("The gradient is 1/W = 1/2 of the whole batch's: 50 % off.", LOST),
            marks=pytest.mark.long,
        ),
    ],
)
def test_jax(name: str, status: int, words: tuple[str, ...], jax_losses: str) -> None:
    result = verify(jax_losses, name, "--backend", "jax")
    assert result.exit_code == status, result.output
    for part in words:
        assert part in result.stdout


def test_bad_usage_is_one_line() -> None:
    pytest.importorskip("torch")
    distributed = ("verify", "--distributed", "2")
    refused(run("verify", "--timeout", "5"), "--timeout is of --distributed")
    refused(run(*distributed, "--full"), "--distributed has one suite")
    refused(run(*distributed, "--namespace", "numpy"), "--distributed takes its library by")
    refused(run(*distributed, "--backend", "mlx"), "--backend must be one of torch, jax")
    both = ("--backend", "torch", "--backend", "jax")
    refused(run(*distributed, *both), "--backend may be given once")
    refused(run(*distributed, "--dtype", "float16"), "--dtype must be one of float64, float32")
    refused(run(*distributed, "--device", "tpu"), "--device must be one of")
    refused(run(*distributed, "--convention", "mine"), "--convention must be one of")
    target = ("--target", "math:hypot", "--convention", "official")
    refused(run(*distributed, *target), "a target is compared with itself in one process")
    assert run("verify", "--distributed", "1").exit_code == 2
    many = ("verify", "--distributed", "64", "--device", "cuda")
    refused(run(*many), "--device cuda needs a GPU for each of 64 ranks")


def test_help_teaches() -> None:
    printed = run("verify", "--help", width=120).stdout
    for part in ("--distributed", "--timeout", "torch.distributed", 'the axis "ranks"'):
        assert part in " ".join(printed.split())
