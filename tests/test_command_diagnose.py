"""``vicreg diagnose``: the report, the data, the figure, and one line for any other file."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("typer")

from typer.testing import CliRunner, Result

from vicreg import Diagnosis, diagnose
from vicreg.tools.command import application

Z = np.random.default_rng(0).standard_normal((40, 6))
CONSTANT = np.full((9, 4), 0.1)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(application(), ["diagnose", *map(str, arguments)])


def refused(result: Result, *parts: str, status: int = 2) -> None:
    """Assert the exit status, no report, and one line with every one of `parts`."""
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    line = result.stderr.strip()
    assert line.startswith("vicreg: ")
    assert "\n" not in line
    for part in parts:
        assert part in line


def saved(folder: Path, array: np.ndarray, name: str = "z.npy") -> Path:
    np.save(folder / name, array, allow_pickle=True)
    return folder / name


def test_the_report_is_that_of_the_function(tmp_path: Path) -> None:
    result = run(saved(tmp_path, Z))
    assert result.exit_code == 0
    assert result.stdout == f"{diagnose(Z)}\n"
    result = run(saved(tmp_path, Z), saved(tmp_path, Z + 2, "other.npy"), "--convention", "paper")
    assert result.stdout == f"{diagnose(Z, other=Z + 2, convention='paper')}\n"


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f8"])
def test_every_floating_point_dtype(tmp_path: Path, dtype: str) -> None:
    z = Z.astype(dtype)
    native = z.astype(z.dtype.newbyteorder("="))
    assert run(saved(tmp_path, z)).stdout == f"{diagnose(native)}\n"


def test_json_is_the_data(tmp_path: Path) -> None:
    data = json.loads(run(saved(tmp_path, Z), "--json").stdout)
    wanted = vars(diagnose(Z))
    assert list(data) == ["verdict", "level", "collapsed", *wanted]
    assert data["level"] == "healthy"
    assert data["verdict"] == diagnose(Z).verdict
    assert data["collapsed"] is False
    for name, value in wanted.items():
        assert data[name] == (value.tolist() if isinstance(value, np.ndarray) else value)
    assert data["invariance"] is None


def test_json_has_null_for_what_overflows(tmp_path: Path) -> None:
    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    result = run(saved(tmp_path, (Z * 1e30).astype(np.float32)), "--json")
    data = json.loads(result.stdout, parse_constant=no_constant)
    assert data["covariance"] is None
    assert 5 < data["effective_rank"] <= 6
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("array", "parts"),
    [
        (np.ones((4, 3), int), ("holds int64", "float32", "convert")),
        (np.ones((4, 3), bool), ("holds bool",)),
        (np.ones((4, 3), complex), ("holds complex128",)),
        (np.zeros(4, [("a", "f4"), ("b", "f8")]), ("holds [('a', '<f4'), ('b', '<f8')]",)),
        (np.zeros((4, 3), "V2"), ("holds |V2",)),
        (np.full((4, 3), "text"), ("holds <U4",)),
        (np.ones((4, 3), "datetime64[s]"), ("holds datetime64[s]",)),
        (np.ones(4), ("two axes", "(4,)")),
        (np.ones((4, 3, 2)), ("two axes", "(4, 3, 2)")),
        (np.float64(3), ("two axes", "()")),
        (np.ones((0, 3)), ("(0, 3)",)),
        (np.ones((4, 0)), ("(4, 0)",)),
        (np.ones((1, 3)), ("one sample",)),
        (np.array([[{}, 1]], dtype=object), ("Python objects",)),
    ],
    ids=str,
)
def test_arrays_that_are_no_embeddings(tmp_path: Path, array: Any, parts: tuple) -> None:
    refused(run(saved(tmp_path, array)), "z.npy'", *parts)
    refused(run(saved(tmp_path, Z, "good.npy"), saved(tmp_path, array)), "z.npy'", *parts)


def with_header(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is no .npy file"),
        (b"1.0,2.0\n3.0,4.0\n", "is no .npy file"),
        (b"\x80\x04\x95.", "is no .npy file"),  # a pickle
        (b"PK\x03\x04 and more", "is no .npy file"),
        (b"\x93NUMPY", "is damaged"),
        (b"\x93NUMPY\x09\x00", "is damaged"),
        (with_header(b"{'descr': '<f8'"), "is damaged"),
        (
            with_header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2)}\n"),
            "is damaged",
        ),
        (
            with_header(
                b"{'descr': '<f8', 'fortran_order': False, 'shape': (2, 1%s)}\n" % (b"0" * 30)
            ),
            "z.npy'",
        ),
    ],
    ids=range(9),
)
def test_files_that_are_no_arrays(tmp_path: Path, content: bytes, part: str) -> None:
    file = tmp_path / "z.npy"
    file.write_bytes(content)
    refused(run(file), "z.npy'", part)


def test_a_cut_off_file(tmp_path: Path) -> None:
    whole = io.BytesIO()
    np.save(whole, Z)
    file = tmp_path / "z.npy"
    for length in range(7, len(whole.getvalue()) - 1, 37):
        file.write_bytes(whole.getvalue()[:length])
        refused(run(file), "is damaged")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    refused(run(tmp_path / "none.npy"), "cannot read", "No such file")
    (tmp_path / "folder.npy").mkdir()
    refused(run(tmp_path / "folder.npy"), "cannot read", "Is a directory")
    refused(run(tmp_path), "cannot read", "suffix must be one of .npy, .npz, .pt, .pth, .safe")
    locked = saved(tmp_path, Z)
    locked.chmod(0)
    if not os.access(locked, os.R_OK):  # nothing is locked to the administrator
        refused(run(locked), "cannot read", "Permission denied")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_what_is_no_plain_file(tmp_path: Path, suffix: str) -> None:
    """A pipe that nobody writes to would be waited for; a device has no end."""
    pipe, device, loop = (tmp_path / f"{name}{suffix}" for name in ("pipe", "device", "loop"))
    os.mkfifo(pipe)
    device.symlink_to(os.devnull)
    loop.symlink_to(loop)
    refused(run(pipe), "cannot read", "it is no plain file")
    refused(run(device), "cannot read", "it is no plain file")
    refused(run(loop), "cannot read", "loop")


def test_embeddings_are_never_replaced(tmp_path: Path) -> None:
    file, other = saved(tmp_path, Z), saved(tmp_path, Z, "other.npy")
    (tmp_path / "link.json").symlink_to(file)
    for output in (file, other, tmp_path / "link.json"):
        refused(run(file, other, f"--json={output}"), "--json must not replace")
    np.testing.assert_array_equal(np.load(file), Z)


def test_views_that_differ(tmp_path: Path) -> None:
    first = saved(tmp_path, Z)
    for other in (Z[:, :5], Z.astype(np.float32)):
        refused(
            run(first, saved(tmp_path, other, "other.npy")),
            "other.npy' must have the shape and dtype of",
            str(other.shape),
            str(other.dtype),
        )


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    refused(run(saved(tmp_path, Z), "--convention", "mine"), "convention", "'mine'")
    one = saved(tmp_path, Z[:, :1], "one.npy")
    refused(run(one, "--convention", "vcreg"), "d(d - 1)")
    z = saved(tmp_path, Z)
    refused(run(z, z, "--convention", "vcreg"), "'vcreg' has no invariance term")


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_file_larger_than_memory(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not read: the system may end a program that takes too much."""
    file, z = tmp_path / f"z{suffix}", np.zeros((4000, 1000))
    if suffix == ".npy":
        np.save(file, z)
    else:
        pytest.importorskip("safetensors.numpy").save_file({"z": z}, file)
    memory = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10_000}
    monkeypatch.setattr(os, "sysconf", memory.__getitem__, raising=False)
    refused(run(file), "does not fit into memory: 0.0298 of 0.0381 GiB")


def test_values_that_overflow_fail(tmp_path: Path) -> None:
    """They are finite, and nothing can be said of them: worse than what can be named."""
    z = np.copysign(np.float32(3e38), Z).astype(np.float32)
    result = run(saved(tmp_path, z), "--fail-on", "collapsed")
    assert result.stdout.startswith("Not finite")
    assert result.exit_code == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_counted(tmp_path: Path, bad: float) -> None:
    z = Z.copy()
    z[3, :2] = z[7, 1] = bad
    result = run(saved(tmp_path, z))
    refused(result, "3 of 240 values", "in 2 of 40 samples", "sample 3")


class Malicious:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.mark,))


class Blocked:
    """Of a module that PyTorch names in an error of its own."""

    def __reduce__(self) -> tuple:
        return (os.getcwd, ())


def archive(file: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(f"{name}.npy", content)
    return file


def as_npy(array: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


class TestNpz:
    def test_the_only_array_needs_no_key(self, tmp_path: Path) -> None:
        file = archive(tmp_path / "z.npz", z=as_npy(Z))
        assert run(file).stdout == run(file, "--key", "z").stdout == f"{diagnose(Z)}\n"

    def test_keys(self, tmp_path: Path) -> None:
        file = archive(tmp_path / "z.npz", a=as_npy(Z), b=as_npy(Z + 2))
        assert run(file, "--key", "a").stdout == f"{diagnose(Z)}\n"
        both = run(file, file, "--key", "a", "--key", "b").stdout
        assert both == f"{diagnose(Z, other=Z + 2)}\n"
        refused(run(file), "holds 2 arrays: choose by --key from 'a', 'b'")
        refused(run(file, "--key", "c"), "no array 'c': --key must be one of 'a', 'b'")
        refused(run(file, "--key", "a", "--key", "b"), "at most; got 2 for 1")
        refused(run(saved(tmp_path, Z), "--key", "a"), "leave out --key")
        refused(run(archive(tmp_path / "none.npz")), "holds no array")
        many = archive(tmp_path / "many.npz", **{f"k{i}": b"" for i in range(99)})
        refused(run(many), "'k9' and 89 more")

    def test_compressed(self, tmp_path: Path) -> None:
        np.savez_compressed(tmp_path / "z.npz", z=Z.astype(np.float16))
        assert run(tmp_path / "z.npz").stdout == f"{diagnose(Z.astype(np.float16))}\n"

    @pytest.mark.parametrize(
        "member",
        [b"", b"text", as_npy(Z)[:-8], as_npy(Z)[:20], as_npy(Z)[:7] + b"\x09" + as_npy(Z)[8:]],
        ids=range(5),
    )
    def test_damaged_members(self, tmp_path: Path, member: bytes) -> None:
        refused(run(archive(tmp_path / "z.npz", z=member)), "z.npz' is damaged")

    def test_a_flipped_bit(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "z.npz", z=Z)
        content = bytearray((tmp_path / "z.npz").read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / "z.npz").write_bytes(content)
        refused(run(tmp_path / "z.npz"), "is damaged", "CRC")

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and more", as_npy(Z)], ids=range(3))
    def test_what_is_no_archive(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "z.npz").write_bytes(content)
        refused(run(tmp_path / "z.npz"), "is no .npz file")

    def test_what_unpacks_to_more_than_memory_holds(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bomb = archive(tmp_path / "z.npz", z=as_npy(np.zeros((4000, 1000))))
        assert bomb.stat().st_size < 100_000
        memory = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10_000}
        monkeypatch.setattr(os, "sysconf", memory.__getitem__, raising=False)
        refused(run(bomb), "does not fit into memory: 0.0298 of 0.0381 GiB")

    def test_a_shape_that_the_file_does_not_have(self, tmp_path: Path) -> None:
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (2, 1%s)}\n" % (b"0" * 15)
        refused(run(archive(tmp_path / "z.npz", z=with_header(header))), "z.npz'")

    def test_a_header_of_any_length(self, tmp_path: Path) -> None:
        refused(run(archive(tmp_path / "z.npz", z=with_header(b" " * 60_000))), "is damaged")


class TestTorch:
    @pytest.fixture(autouse=True)
    def torch(self) -> None:
        pytest.importorskip("torch")

    def save(self, data: Any, file: Path) -> Path:
        import torch

        torch.save(data, file)
        return file

    def test_a_tensor_and_a_dictionary(self, tmp_path: Path) -> None:
        import torch

        wanted = f"{diagnose(Z)}\n"
        z = torch.asarray(Z)
        assert run(self.save(z, tmp_path / "z.pt")).stdout == wanted
        assert run(self.save(z.requires_grad_(), tmp_path / "z.PTH")).stdout == wanted
        file = self.save({"step": 7, "z": torch.nn.Parameter(z)}, tmp_path / "z.pt")
        assert run(file).stdout == wanted
        file = self.save({"a": z + 1, "z": z}, tmp_path / "z.pt")
        assert run(file, "--key", "z").stdout == wanted
        refused(run(file), "choose by --key from 'a', 'z'")
        old = tmp_path / "old.pt"
        torch.save(z, old, _use_new_zipfile_serialization=False)
        assert run(old).stdout == wanted

    def test_bfloat16(self, tmp_path: Path) -> None:
        import torch

        z = torch.asarray(Z).to(torch.bfloat16)
        file = self.save(z, tmp_path / "z.pt")
        assert run(file).stdout == f"{diagnose(z)}\n"
        assert json.loads(run(file, "--json").stdout)["n"] == 40
        pytest.importorskip("matplotlib")
        assert run(file, "--plot", tmp_path / "z.png").exit_code == 0
        z[3, 1] = math.nan
        refused(run(self.save(z, tmp_path / "z.pt")), "1 of 240 values", "sample 3")

    def test_what_is_no_batch(self, tmp_path: Path) -> None:
        import torch

        z, file = torch.asarray(Z), tmp_path / "z.pt"
        refused(run(self.save(z.int(), file)), "holds int32: embeddings are float16, bfloat16")
        for data in ([z], {}, {"of the model": {"z": z}}):
            refused(run(self.save(data, file)), "must hold a tensor or a dict of tensors")
        refused(run(self.save(z.to_sparse(), file)), "dense")
        refused(run(self.save(z.to("meta"), file)), "dense")
        refused(run(self.save(z[0], file)), "two axes")
        endless = torch.ones(1, dtype=torch.float32).expand(10**6, 10**6)
        refused(run(self.save(endless, file)), "does not fit into memory")

    def test_damaged_files(self, tmp_path: Path) -> None:
        import torch

        file = self.save(torch.asarray(Z), tmp_path / "z.pt")
        whole = file.read_bytes()
        for content in (b"", b"\x80\x02", b"text", whole[:100], whole[:-50], as_npy(Z)):
            file.write_bytes(content)
            refused(run(file), "z.pt'")
        whole = self.save(torch.ones(10_000), file).read_bytes()
        file.write_bytes(whole[: len(whole) // 2])  # PyTorch seeks before its beginning
        refused(run(file), "z.pt' is damaged")

    def test_no_code_is_run(self, tmp_path: Path) -> None:
        import torch

        mark, file = tmp_path / "ran", tmp_path / "z.pt"
        evil = {"z": torch.asarray(Z), "evil": Malicious(mark)}
        for new in (True, False):
            for data in (evil, Blocked()):
                torch.save(data, file, _use_new_zipfile_serialization=new)
                refused(run(file), "holds Python objects, which are not loaded")
        file.write_bytes(pickle.dumps(Malicious(mark)))
        refused(run(file), "z.pt'")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, and still out there
            torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
        refused(run(file), "z.pt'")
        assert not mark.exists()
        torch.save(evil, file)
        torch.load(file, weights_only=False)
        assert mark.exists()  # it would have been seen


class TestSafetensors:
    @pytest.fixture(autouse=True)
    def safetensors(self) -> None:
        pytest.importorskip("safetensors")

    def test_arrays_by_key(self, tmp_path: Path) -> None:
        from safetensors.numpy import save_file

        file = tmp_path / "z.safetensors"
        save_file({"z": Z}, file)
        assert run(file).stdout == run(file, "--key", "z").stdout == f"{diagnose(Z)}\n"
        save_file({"a": Z, "b": Z.astype(np.float16), "i": np.ones((4, 3), int)}, file)
        assert run(file, "--key", "b").stdout == f"{diagnose(Z.astype(np.float16))}\n"
        refused(run(file), "choose by --key from 'a', 'b', 'i'")
        refused(run(file, "--key", "c"), "no array 'c'")
        refused(run(file, "--key", "i"), "holds int64")
        save_file({}, file)
        refused(run(file), "holds no array")

    def test_bfloat16(self, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        from safetensors.torch import save_file

        z, file = torch.asarray(Z).to(torch.bfloat16), tmp_path / "z.safetensors"
        save_file({"z": z}, file)
        assert run(file).stdout == f"{diagnose(z)}\n"
        save_file({"z": z.to(torch.float8_e5m2)}, file)
        refused(run(file), "holds float8_e5m2: embeddings are float16")

    def test_damaged_files(self, tmp_path: Path) -> None:
        from safetensors.numpy import save

        file, whole = tmp_path / "z.safetensors", save({"z": Z})
        huge = (2**62).to_bytes(8, "little")
        for content in (
            b"",
            whole[:7],
            whole[:40],
            whole[:-1],
            huge + whole[8:],
            as_npy(Z),
            pickle.dumps(Malicious(tmp_path / "ran")),
        ):
            file.write_bytes(content)
            refused(run(file), "is damaged")
        assert not (tmp_path / "ran").exists()
        refused(run(tmp_path / "none.safetensors"), "cannot read", "No such file")


def test_safetensors_that_are_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "z.safetensors").write_bytes(b"")
    refused(run(tmp_path / "z.safetensors"), "not installed: pip install safetensors")


def test_no_code_in_arrays_is_run(tmp_path: Path) -> None:
    evil = np.array([[Malicious(tmp_path / "ran"), 1.0]], dtype=object)
    refused(run(saved(tmp_path, evil)), "holds Python objects, which are not loaded")
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    refused(run(tmp_path / "pickle.npy"), "is no .npy file")
    np.savez(tmp_path / "z.npz", good=Z, evil=evil)
    refused(run(tmp_path / "z.npz", "--key", "evil"), "holds Python objects, which are not loaded")
    assert run(tmp_path / "z.npz", "--key", "good").exit_code == 0
    assert not (tmp_path / "ran").exists()
    np.load(tmp_path / "z.npy", allow_pickle=True)
    assert (tmp_path / "ran").exists()  # it would have been seen


class TestFailOn:
    BATCHES: ClassVar = {
        "collapsed": CONSTANT,
        "dead": Z * [1, 1, 1, 1, 1, 0],
        "low-variance": 0.37 * Z,
        "too-few-samples": Z[:3],
        "healthy": Z,
    }
    LEVELS = tuple(BATCHES)

    @pytest.mark.parametrize("level", LEVELS[:-1])
    def test_that_level_and_worse(self, tmp_path: Path, level: str) -> None:
        for name, z in self.BATCHES.items():
            result = run(saved(tmp_path, z), "--fail-on", level)
            is_worse = self.LEVELS.index(name) <= self.LEVELS.index(level)
            assert result.exit_code == int(is_worse), name
            assert result.stdout == f"{diagnose(z)}\n"

    def test_beside_data_on_standard_output_the_verdict_is_on_the_other(
        self, tmp_path: Path
    ) -> None:
        result = run(saved(tmp_path, CONSTANT), "--fail-on", "dead", "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["collapsed"] is True
        assert result.stderr == "vicreg: Collapsed: every sample is the same\n"

    def test_another_level(self, tmp_path: Path) -> None:
        refused(run(saved(tmp_path, Z), "--fail-on", "healthy"), "--fail-on must be one of coll")


@pytest.mark.skipif(sys.platform == "win32", reason="it has no SIGINT for one process")
class TestInterrupt:
    PROGRAM = """
import signal, sys, time
import numpy as np
from rich.console import Console
from vicreg.tools.background import interruptible

signal.signal(signal.SIGINT, signal.default_int_handler)
z = np.random.default_rng(0).standard_normal((4000, 4000))
print("begun", flush=True)
interruptible(lambda: np.linalg.svd(z, compute_uv=False), Console(stderr=True), "Working")
"""

    def test_a_call_of_the_library_ends_within_a_second(self) -> None:
        """This one takes half a minute or more and does not return to Python before."""
        with subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(1.3)
            process.send_signal(signal.SIGINT)
            start = time.monotonic()
            _, errors = process.communicate(timeout=30)
        assert time.monotonic() - start < 1
        assert process.returncode == 130
        assert errors == "Working ...\nvicreg: stopped\n"

    def test_what_the_work_raises_is_raised(self) -> None:
        from rich.console import Console

        from vicreg.tools.background import interruptible

        with pytest.raises(ZeroDivisionError):
            interruptible(lambda: 1 / 0, Console(), "Working")
        assert interruptible(lambda: 3, Console(), "Working") == 3


class TestPlot:
    @pytest.fixture(autouse=True)
    def matplotlib(self) -> None:
        pytest.importorskip("matplotlib")

    @pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
    def test_the_file(self, tmp_path: Path, suffix: str) -> None:
        file = tmp_path / f"figure{suffix}"
        result = run(saved(tmp_path, Z), "--plot", file)
        assert result.stdout == f"{diagnose(Z)}\nWritten: {file}\n"
        assert file.stat().st_size > 10_000

    def test_beside_json_nothing_else_is_printed(self, tmp_path: Path) -> None:
        file = tmp_path / "figure.png"
        json.loads(run(saved(tmp_path, Z), "--json", "--plot", file).stdout)
        assert file.exists()

    def test_what_cannot_be_written_is_said_before_anything(self, tmp_path: Path) -> None:
        file = saved(tmp_path, Z)
        refused(run(file, "--plot", tmp_path / "a.xyz"), "suffix must be one of")
        refused(run(file, "--plot", tmp_path / "no" / "a.png"), "is no directory")

    @pytest.mark.parametrize(
        "z",
        [
            Z,
            CONSTANT,
            Z[:, :1],
            Z[:2],
            Z[:, :2] @ np.ones((2, 64)),
            Z * [1, 1, 0, 0, 1, 1],
            Z * np.logspace(-4, 4, 6),
            1e-6 * Z,
            np.random.default_rng(1).standard_normal((8, 8192)),
            (Z * 1e30).astype(np.float32),
        ],
        ids=range(10),
    )
    def test_nothing_overlaps(self, z: np.ndarray) -> None:
        with np.errstate(all="ignore"):
            figure = drawn(diagnose(z))
        renderer = figure.canvas.get_renderer()
        titles = (figure._suptitle, figure._supxlabel)
        boxes = [title.get_window_extent(renderer) for title in titles]
        boxes += [axis.get_tightbbox(renderer) for axis in figure.axes]
        assert len(boxes) == 4
        for place, box in enumerate(boxes):
            assert figure.bbox.containsx(box.x0)
            assert figure.bbox.containsx(box.x1)
            assert figure.bbox.containsy(box.y0)
            assert figure.bbox.containsy(box.y1)
            for other in boxes[place + 1 :]:
                overlap = box.intersection(box, other)
                assert overlap is None or min(overlap.width, overlap.height) < 2

    def test_the_curves_are_the_data(self) -> None:
        z = Z * [3, 1, 0, 2, 1, 1]
        diagnosis = diagnose(z)
        spectrum, spread = drawn(diagnosis).axes
        whitened, values = spectrum.get_lines()
        np.testing.assert_array_equal(values.get_ydata(), diagnosis.singular_values[:5])
        # As much variance as the batch has, in each of the six directions alike.
        energy = np.sum((z - z.mean(axis=0)) ** 2)
        np.testing.assert_allclose(whitened.get_ydata(), math.sqrt(energy / 6))
        gamma, std = spread.get_lines()
        np.testing.assert_array_equal(gamma.get_ydata(), 1)
        np.testing.assert_array_equal(std.get_ydata(), np.sort(diagnosis.std)[:0:-1])
        assert "1 of 6 features" in spread.texts[0].get_text()
        assert "1 of 6 directions" in spectrum.texts[0].get_text()

    def test_a_whitened_batch_lies_on_its_reference(self) -> None:
        for n, d in ((40, 6), (8, 20)):
            limit = min(n - 1, d)
            basis, _ = np.linalg.qr(np.c_[np.ones(n), np.random.default_rng(2).random((n, limit))])
            spectrum, _ = drawn(diagnose(basis[:, 1:] @ np.eye(limit, d))).axes
            whitened, values = spectrum.get_lines()
            np.testing.assert_allclose(values.get_ydata(), whitened.get_ydata()[0])

    @pytest.mark.parametrize("z", [Z, CONSTANT, Z * [1, 1, 0, 0, 1, 1]], ids=range(3))
    def test_the_title_is_the_verdict(self, z: np.ndarray) -> None:
        assert drawn(diagnose(z))._suptitle.get_text() == diagnose(z).verdict

    def test_unit_norm_has_a_reference_of_its_own(self) -> None:
        figure = drawn(diagnose(Z / np.linalg.norm(Z, axis=1, keepdims=True)))
        most = math.sqrt(40 / 39 / 6)
        assert figure.axes[1].get_lines()[0].get_ydata()[0] == pytest.approx(most)
        assert "each of norm 1" in figure._supxlabel.get_text()

    def test_a_constant_batch_is_said(self) -> None:
        spectrum, spread = drawn(diagnose(CONSTANT)).axes
        assert "the samples are all the same" in spectrum.texts[0].get_text()
        assert "4 of 4 features" in spread.texts[0].get_text()

    def test_a_name_is_no_formula(self, tmp_path: Path) -> None:
        file = tmp_path / "figure.svg"
        assert run(saved(tmp_path, Z, "$x^2_$.npy"), "--plot", file).exit_code == 0


def drawn(diagnosis: Diagnosis) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from vicreg.tools.diagnostics_plot import draw

    figure = draw(diagnosis, "z.npy")
    FigureCanvasAgg(figure).draw()
    return figure


def test_without_its_requirements_it_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(tmp_path, Z)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused(run(file, "--plot", tmp_path / "a.png"), "matplotlib is not installed")
    assert run(file).exit_code == 0


def test_help() -> None:
    shown = run("--help").stdout
    assert "vicreg diagnose z.npy --plot z.png" in shown
    assert "--json" in shown
