"""Change the package in one small place, thousands of times, and check that the tests see it.

    python tests/mutants.py [--part K/N] [WORD ...]

tries the mutants of part K of N, by default all; with WORDs those whose name contains each of
them. The name begins with the file. The mutants are those of cosmic-ray's operators, and a few of
strings. A process that has imported the libraries, but not this package, makes a child for each
mutant. The child imports a copy of the package with the mutant, and runs the default tests that
reach the changed line, the fastest first, until one fails. Which tests reach a line is found out
by one run of them, before anything else; it is kept in the folder ``.mutants``, with the results.
``--record`` writes the results to ``mutants.json``, and so into the repository. What was caught
in a former run is not tried again, unless the function around it has changed.

Each mutant that no test can tell from the package stands in ``mutants.toml`` with the reason. The
exit status is 1 if one that does not stand there was not caught, or if one that does was caught
or is no mutant any more.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import difflib
import gc
import hashlib
import importlib
import json
import multiprocessing
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
PACKAGE = Path("src", "vicreg")
KEPT = ROOT / ".mutants"
LISTED = Path(__file__).with_suffix(".toml")
RECORD = Path(__file__).with_suffix(".json")

#: The files to mutate.
FILES = (
    "_core/**/*.py",
    "_conventions.py",
    "_checks.py",
    "_adapters/**/*.py",
    "distributed.py",
    "_losses/*.py",
)

#: The operators of cosmic-ray: one replacement of each operator, comparison and number.
OPERATORS = (
    *(
        f"ReplaceBinaryOperator_{change}"
        for change in (
            *("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_FloorDiv"),
            *("Pow_Mul", "BitAnd_BitOr", "BitOr_BitAnd"),
        )
    ),
    *(
        f"ReplaceComparisonOperator_{change}"
        for change in (
            *("Eq_NotEq", "NotEq_Eq", "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt"),
            *("Is_IsNot", "IsNot_Is"),
        )
    ),
    *("ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_USub"),
    *("ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue"),
    *("AddNot", "NumberReplacer", "ZeroIterationForLoop", "ExceptionReplacer"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak"),
)

#: Strings that choose between formulas, each with what is put in its place.
CHOICES = {
    "mean": "sum",
    "sum": "mean",
    "squared norm": "mean",
    "none": "mean",
    "std": "variance",
    "variance": "std",
    "d": "d(d-1)",
    "d(d-1)": "d",
    "gram": "covariance",
    "covariance": "gram",
    "square": "smooth_l1",
    "smooth_l1": "square",
    "published": "exact",
}

#: The tests that tell the package's results, by what their files are called: not those of the
#: command, of the tools and of the docs.
TESTS = (
    *("accuracy", "axes", "bad_input", "bench_count", "cached_backward", "communicators"),
    *("conventions", "dask", "definition", "diagnose", "dtypes", "growth", "hard_input", "jax"),
    *("jax_mesh", "jax_settings", "libraries", "mlx"),
    *("monitor", "names", "pairs", "paths", "plan", "properties", "published", "ranks"),
    *("ranks_jax", "ranks_mpi", "ranks_torch", "sample_weight", "stateful", "stateful_torch"),
    *("torch", "torch_modes", "trajectories", "vcreg", "vcreg_jax", "vcreg_layer", "vicregl"),
)

#: What runs in processes of the tests' own, where no line is seen to be reached.
ELSEWHERE = {
    "_adapters/torch/communicator.py": ("tests/test_ranks_torch.py",),
    "_adapters/torch/autograd.py": ("tests/test_ranks_torch.py",),
    "_adapters/jax.py": ("tests/test_ranks_jax.py", "tests/test_jax_mesh.py"),
    "_adapters/mpi.py": ("tests/test_ranks_mpi.py",),
    "_core/agreement.py": ("tests/test_ranks_torch.py",),
    "_core/ranks.py": ("tests/test_ranks_torch.py", "tests/test_ranks_jax.py"),
    "distributed.py": ("tests/test_ranks_torch.py", "tests/test_ranks_mpi.py"),
}
ALL_ELSEWHERE = {file for files in ELSEWHERE.values() for file in files}
PROCESSES = 300  # seconds that the tests of such processes may take

#: What is imported before the children are made. No library computes anything yet.
IMPORTED = (
    *("numpy", "torch", "torch._dynamo", "torch.distributed", "torch.func", "jax", "jax.numpy"),
    *("jax.experimental.pallas", "optax", "mlx.core", "dask.array", "array_api_strict", "ndonnx"),
    *(
        "mparray",
        "array_api_compat.torch",
        "array_api_compat.numpy",
        "array_api_compat.dask.array",
    ),
    *("array_api_extra.testing", "hypothesis", "pytest", "flax.nnx", "equinox", "scipy.linalg"),
    *("sklearn.datasets", "rich.console", "typer"),
)

OTHERS = 15  # so many other tests of the file are tried where all that reach the line pass
QUICK = 0.3  # seconds that each of them may take
FIRST = 12  # so many tests are tried before the others are collected
MEMORY = 12 * 2**30  # bytes that a child may ask for
CONTROLS = 20  # one mutant in so many is checked by the same tests on the package itself


@dataclass(frozen=True)
class Mutant:
    """A change of one place of a file."""

    file: str  # from the folder of the package
    function: str  # where it stands, "" outside of all functions
    line: int
    old: str  # the changed lines, in one
    new: str
    number: int  # of several that are written in the same way in the same function, from 1
    lines: tuple[int, ...]  # which run if it does
    state: str  # a hash of the mutated function, class or assignment of the module
    text: str = field(repr=False)  # the whole file

    @property
    def key(self) -> str:
        number = f" #{self.number}" if self.number > 1 else ""
        return f"{self.file} {self.function}: {self.old} -> {self.new}{number}"

    @property
    def id(self) -> str:
        return f"{zlib.crc32(self.key.encode()):08x}"

    def is_in(self, part: tuple[int, int]) -> bool:
        return int(self.id, 16) % part[1] == part[0] - 1


@dataclass
class Outcome:
    """What became of a mutant."""

    key: str
    state: str  # of the mutant
    line: int
    caught: bool
    by: str  # the test, or how else it was caught; what ran, where it was not
    seconds: float
    tests: int = 0
    control: str | None = None  # of a control: what failed on the package itself, "" for nothing


def mutants_of(file: str, source: str) -> list[Mutant]:
    """Return the mutants of a file that differ from it and from each other where they run."""
    tree = ast.parse(source)
    places = _places(tree)
    seen = {_meaning(ast.parse(source), _first(node)) for node in tree.body}
    found: list[Mutant] = []
    numbers: Counter[tuple[str, str, str]] = Counter()
    for text in _texts(source):
        old, new, first = _changed(source, text)
        place = places[min(first, max(places))]
        try:
            meaning = _meaning(ast.parse(text), first)
        except SyntaxError:
            continue
        if meaning in seen:
            continue
        seen.add(meaning)
        numbers[place.function, old, new] += 1
        number = numbers[place.function, old, new]
        found.append(
            Mutant(
                *(file, place.function, first, old, new, number, place.lines),
                *(_hash(meaning.partition(" ")[2]), text),
            )
        )
    return found


@dataclass(frozen=True)
class _Place:
    function: str
    lines: tuple[int, ...]


def _places(tree: ast.Module) -> dict[int, _Place]:
    """Return for each line its function and which lines run if it does.

    Those are the lines of the smallest statement around it; of the head of a function, its body;
    none where it runs at the import.
    """
    places: dict[int, _Place] = {}

    def visit(parent: ast.AST, function: str, is_called: bool) -> None:
        for node in ast.iter_child_nodes(parent):
            if not isinstance(node, (ast.stmt, ast.excepthandler)):
                continue
            within = {
                line
                for one in ast.iter_child_nodes(node)
                if isinstance(one, (ast.stmt, ast.excepthandler))
                for line in _range(one)
            }
            name, lines = function, tuple(line for line in _range(node) if line not in within)
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                name = f"{function}.{node.name}".lstrip(".")
            if isinstance(node, ast.FunctionDef):
                lines = tuple(range(node.body[0].lineno, _range(node).stop))
            elif not is_called:
                lines = ()
            for line in _range(node):
                places[line] = _Place(name, lines)
            visit(node, name, is_called or isinstance(node, ast.FunctionDef))

    visit(tree, "", False)
    return places


def _range(node: Any) -> range:
    return range(_first(node), node.end_lineno + 1)


_PAIRS = ((ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn))
_OPPOSITE = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])}


class _Plain(ast.NodeTransformer):
    """Take away what does not run, and write what is the same in one way."""

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        if any(getattr(one, "id", "") == "overload" for one in node.decorator_list):
            return ast.Pass()
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if getattr(node.func, "id", "") == "cast":
            node.args[0] = ast.Constant(None)
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        test = node.test
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) and node.orelse:
            node.test, node.body, node.orelse = test.operand, node.orelse, node.body
        return ast.Pass() if "TYPE_CHECKING" in ast.dump(node.test) else node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        within = node.operand
        if not isinstance(node.op, ast.Not):
            return node
        if isinstance(within, ast.Compare) and len(within.ops) == 1:
            opposite = _OPPOSITE.get(type(within.ops[0]))
            if opposite is not None:
                within.ops = [opposite()]
                return within
        if isinstance(within, ast.UnaryOp) and isinstance(within.op, ast.Not):
            return within.operand
        return node


def _meaning(tree: ast.Module, line: int) -> str:
    """Return what runs of the module's statement at `line`."""
    place = max(place for place, node in enumerate(tree.body) if _first(node) <= line)
    return f"{place} {ast.dump(_Plain().visit(tree.body[place]))}"


def _first(node: Any) -> int:
    return min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])


def _texts(source: str) -> Iterator[str]:
    """Yield the file with each change made."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator

    root = get_ast(source)
    nodes = list(ast_nodes(root))
    operators = [get_operator(f"core/{name}")() for name in OPERATORS]
    for node in nodes:
        if _is_assertion(node):
            continue
        for operator in operators:
            count = sum(1 for _ in operator.mutation_positions(node))
            # Of a number only what is greater by 1: the others say the same of it.
            for index in range(min(count, 1) if "Number" in str(type(operator)) else count):
                yield _with_change(root, node, operator, index)
        if node.type == "string" and node.value[:1] in "\"'" and not node.value.startswith('"""'):
            choice = CHOICES.get(node.value[1:-1])
            if choice is not None:
                kept, node.value = node.value, f'"{choice}"'
                yield root.get_code()
                node.value = kept


def _is_assertion(node: Any) -> bool:
    """Whether this is the True of ``strict=True`` or ``frozen=True``, which only may raise."""
    argument = node.parent
    return (
        argument is not None
        and argument.type == "argument"
        and argument.get_code().strip() in ("strict=True", "frozen=True")
        and node is argument.children[-1]
    )


def _with_change(root: Any, node: Any, operator: Any, index: int) -> str:
    from cosmic_ray.ast import ast_nodes

    within = list(ast_nodes(node))
    children = [(one, list(one.children)) for one in within if hasattr(one, "children")]
    values = [(one, one.value) for one in within if hasattr(one, "value")]
    siblings = node.parent.children if node.parent is not None else []
    place = next((i for i, one in enumerate(siblings) if one is node), None)
    changed = operator.mutate(node, index)
    if place is not None:
        siblings[place] = changed
    text = root.get_code()
    if place is not None:
        siblings[place] = node
    for one, kept in children:
        one.children = kept
    for one, value in values:
        one.value = value
    return text


def _changed(source: str, text: str) -> tuple[str, str, int]:
    """Return the changed lines before and after, each in one, and the number of the first."""
    before, after = source.splitlines(), text.splitlines()
    start = 0
    while before[start] == after[start]:
        start += 1
    end = 0
    while before[-1 - end] == after[-1 - end] and end < min(len(before), len(after)) - start - 1:
        end += 1
    old, new = before[start : len(before) - end], after[start : len(after) - end]
    return " ".join(" ".join(old).split()), " ".join(" ".join(new).split()), start + 1


@dataclass
class Reached:
    """Which tests reach which line, and how long each takes."""

    seconds: dict[str, float]
    sources: dict[str, str]  # of the files when this was found out
    lines: dict[str, dict[int, list[str]]]  # of each file

    @classmethod
    def load(cls, path: Path) -> Reached:
        kept = json.loads(path.read_text())
        lines = {
            file: {
                int(line): [kept["tests"][one] for one in tests] for line, tests in found.items()
            }
            for file, found in kept["lines"].items()
        }
        return cls(kept["seconds"], kept["sources"], lines)

    def save(self, path: Path) -> None:
        tests = sorted(self.seconds)
        places = {test: place for place, test in enumerate(tests)}
        lines = {
            file: {line: [places[one] for one in sorted(ones)] for line, ones in found.items()}
            for file, found in self.lines.items()
        }
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            json.dumps(
                {"tests": tests, "seconds": self.seconds, "sources": self.sources, "lines": lines}
            )
        )

    def add(self, other: Reached, sources: dict[str, str]) -> None:
        """Add what `other` found out about more tests, in `sources` as they are now."""
        moved = {
            file: defaultdict(
                set, {line: set(ones) for line, ones in self.now(file, text).items()}
            )
            for file, text in sources.items()
        }
        replaced = set(other.seconds)
        for file in sources:
            for ones in moved[file].values():
                ones -= replaced
            for line, ones in other.lines.get(file, {}).items():
                moved[file][line] |= set(ones)
        self.seconds |= other.seconds
        self.sources = sources
        self.lines = {
            file: {line: sorted(ones) for line, ones in found.items() if ones}
            for file, found in moved.items()
        }

    def now(self, file: str, source: str) -> dict[int, list[str]]:
        """Return the tests of each line of the file as it is now."""
        then = self.sources.get(file)
        known = self.lines.get(file, {})
        if then is None or then == source:
            return known
        matcher = difflib.SequenceMatcher(None, then.splitlines(), source.splitlines(), False)
        return {
            b + i + 1: known[a + i + 1]
            for a, b, size in matcher.get_matching_blocks()
            for i in range(size)
            if a + i + 1 in known
        }


def find_reached(files: list[str]) -> Reached:
    """Run the default tests in `files`, and return which lines each of them reaches."""
    import coverage
    import pytest

    folder = str(ROOT / PACKAGE)
    measured = coverage.Coverage(
        data_file=None, config_file=False, source=[folder], omit=[f"{folder}/tools/*"]
    )
    seconds: dict[str, float] = defaultdict(float)
    failed: list[str] = []

    class Watcher:
        @pytest.hookimpl(hookwrapper=True)
        def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
            measured.switch_context(item.nodeid)
            yield
            measured.switch_context("")

        def pytest_runtest_logreport(self, report: Any) -> None:
            seconds[report.nodeid] += report.duration
            if report.outcome != "passed":
                failed.append(report.nodeid)

    arguments = ["-q", "-m", "not long", "-p", "no:cacheprovider", "-p", "no:xdist"]
    arguments += ["-p", "no:cov", *files]
    os.environ["PYTHONPATH"] = f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    sys.path.insert(0, str(ROOT / "src"))
    measured.start()
    try:
        pytest.main(arguments, plugins=[Watcher()])
    finally:
        measured.stop()
    if not seconds:
        sys.exit("no test ran")
    data = measured.get_data()
    lines: dict[str, dict[int, list[str]]] = {}
    sources = {file: (ROOT / PACKAGE / file).read_text() for file in _files()}
    usable = {test: each for test, each in seconds.items() if test not in failed}
    for file in sources:
        contexts = data.contexts_by_lineno(str(ROOT / PACKAGE / file))
        lines[file] = {
            line: [one for one in ones if one in usable] for line, ones in contexts.items()
        }
    return Reached(usable, sources, lines)


class Order:
    """The tests for a mutant: first those that tell most in least time."""

    def __init__(self, reached: Reached, caught_by: dict[str, str]) -> None:
        self.reached, self.caught_by = reached, caught_by
        files = {test.partition("::")[0] for test in reached.seconds}
        self._gone = {file for file in files if not (ROOT / file).exists()}
        lines = [ones for found in reached.lines.values() for ones in found.values()]
        reaching = {one for ones in lines for one in ones}
        #: Quick tests that call nothing: they look at names and defaults.
        left_out = ALL_ELSEWHERE | self._gone
        self._looking = [
            one
            for one, seconds in reached.seconds.items()
            if one not in reaching and seconds < QUICK and one.partition("::")[0] not in left_out
        ]
        self.found_before: Counter[tuple[str, str]] = Counter()
        self._now: dict[str, dict[int, list[str]]] = {}

    def tests(self, mutant: Mutant, source: str) -> list[list[str]]:
        """Return the tests to run one after another, in groups, each for a child of its own.

        First the one that caught it in a former run. Then those that reach the changed statement,
        or else its file, or else all. Then a few others of the file, since what one test alone
        reaches may be kept for all, as what is compiled. At last those of what runs elsewhere.
        """
        if mutant.file not in self._now:
            self._now[mutant.file] = self.reached.now(mutant.file, source)
        left_out = ALL_ELSEWHERE | self._gone
        of_line = {
            line: [one for one in ones if one.partition("::")[0] not in left_out]
            for line, ones in self._now[mutant.file].items()
        }
        of_file = {one for ones in of_line.values() for one in ones}
        found = {one for line in mutant.lines for one in of_line.get(line, ())}
        if found:
            others = {one for one in of_file - found if self.reached.seconds[one] < QUICK}
            first = self._sorted(mutant.file, found)
            first += self._sorted(mutant.file, others)[:OTHERS]
        else:  # what runs at the import alone, or in no test
            every = {one for one in self.reached.seconds if one.partition("::")[0] not in left_out}
            first = self._sorted(mutant.file, of_file or every)
        first += self._looking
        elsewhere = sorted(
            one
            for one in self.reached.seconds
            if one.partition("::")[0] in {*ELSEWHERE.get(mutant.file, ())} - self._gone
        )
        before = self.caught_by.get(mutant.key)
        known = [before] if before in self.reached.seconds else []
        return [group for group in (known, first[:FIRST], first[FIRST:], elsewhere) if group]

    def _sorted(self, file: str, tests: set[str]) -> list[str]:
        groups: dict[str, list[str]] = defaultdict(list)
        for test in sorted(tests, key=lambda one: (self.reached.seconds.get(one, 1.0), one)):
            groups[test.partition("[")[0]].append(test)
        keys: dict[str, float] = {}
        for group, ones in groups.items():
            so_far = 0.0
            for test in ones:
                # A second test of the same function tells less than the first of another one.
                so_far += self.reached.seconds.get(test, 1.0) + 0.05
                keys[test] = so_far / (1 + self.found_before[file, group])
        return sorted(keys, key=lambda one: (keys[one], one))


class _Chosen:
    """A plugin of pytest: run the chosen tests in their order, and say how they go."""

    def __init__(self, tests: list[str], budget: float, pipe: int) -> None:
        self.places = {test: place for place, test in enumerate(tests)}
        self.functions = {test.partition("[")[0].rpartition("::")[2] for test in tests}
        self.end = time.process_time() + budget
        self.pipe = pipe
        self.session: Any = None

    def say(self, *what: str) -> None:
        os.write(self.pipe, ("\t".join(what).replace("\n", " ") + "\n").encode())

    def pytest_pycollect_makeitem(self, name: str, obj: object) -> list[Any] | None:
        is_other = name.startswith("test") and callable(obj) and name not in self.functions
        return [] if is_other else None

    def pytest_collection_modifyitems(self, session: Any, items: list[Any]) -> None:
        self.session = session
        chosen = [item for item in items if item.nodeid in self.places]
        items[:] = sorted(chosen, key=lambda item: self.places[item.nodeid])

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.say("failed", f"import of {report.nodeid}")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.say("begins", nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.say("failed", report.nodeid)
        elif report.when == "call" and report.passed:
            self.say("passed", report.nodeid)

    def pytest_runtest_logfinish(self) -> None:
        if time.process_time() > self.end:
            self.session.shouldstop = "the time is over"


@dataclass
class Run:
    """How the chosen tests went in a child."""

    failed: str | None
    ran: list[str]
    seconds: float


def run_in_child(
    source: Path, tests: list[str], reached: Reached, budget: float, log: Path
) -> Run:
    """Run `tests` on the package in the folder `source`, in a child; stop at the first failure."""
    begun = time.monotonic()
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of forks; none of its threads run yet
        child = os.fork()
    if child == 0:
        try:
            _be_child(source, tests, budget, writing, log)
        except BaseException as error:
            os.write(writing, f"broken\t{error!r}\n".encode())
        os._exit(1)
    os.close(writing)
    failed, ran, done = None, [], False
    left, what = 120.0, "import"
    pending = b""
    while True:
        # In steps, so that no time counts in which the processes are stopped.
        ready, _, _ = select.select([reading], [], [], 1.0)
        if not ready:
            left -= not _is_stopped(child)
            if left > 0:
                continue
            failed = f"no end of {what}"
            break
        read = os.read(reading, 65536)
        if not read:
            break
        *messages, pending = (pending + read).split(b"\n")
        for message in messages:
            kind, _, text = message.decode().partition("\t")
            if kind == "begins":
                what, seconds = text, reached.seconds.get(text, 30.0)
                left = PROCESSES if text.partition("::")[0] in ALL_ELSEWHERE else 45 + 15 * seconds
            elif kind == "failed":
                failed = failed or text
            elif kind == "passed":
                ran.append(text)
            elif kind == "done":
                done = True
            elif kind == "broken":
                raise RuntimeError(f"a child could not run the tests: {text}")
        if failed:
            break
    os.close(reading)
    if failed or not done:
        for end in (os.killpg, os.kill):
            with suppress(ProcessLookupError):
                end(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if failed is None and not done:
        failed = f"end of the process in {what} ({os.waitstatus_to_exitcode(status)})"
    return Run(failed, ran, time.monotonic() - begun)


def _is_stopped(process: int) -> bool:
    """Whether a process is stopped by a signal; never where that cannot be seen."""
    path = Path(f"/proc/{process}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] == "T"


def _be_child(source: Path, tests: list[str], budget: float, pipe: int, log: Path) -> None:
    os.setpgid(0, 0)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    os.environ["PYTHONPATH"] = f"{source}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # some are imported already
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(log.parent / "hypothesis")
    sys.path.insert(0, str(source))
    os.chdir(ROOT)
    import pytest

    files = sorted({test.partition("::")[0] for test in tests})
    arguments = ["-x", "-q", "--tb=short", "-p", "no:cacheprovider"]
    arguments += ["--basetemp", str(log.parent / "temporary"), *files]
    chosen = _Chosen(tests, budget, pipe)
    status = int(pytest.main(arguments, plugins=[chosen]))
    if status not in (0, 1, 2, 5):  # 5: none of the tests is there any more
        chosen.say("failed", "import" if status == 4 else f"pytest with status {status}")
    else:
        import vicreg

        assert vicreg.__file__.startswith(str(source)), vicreg.__file__
        chosen.say("done")
    sys.stdout.flush()
    os._exit(0)


class Worker:
    """Tries mutants one by one, in a copy of the package of its own."""

    def __init__(self, order: Order, budget: float, folder: Path) -> None:
        self.order, self.budget, self.folder = order, budget, folder
        self.source = folder / "src"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / PACKAGE, self.source / "vicreg", ignore=ignored)
        compileall.compile_dir(self.source, quiet=2)

    def run(self, tests: list[str], budget: float) -> Run:
        log = self.folder / "log"
        return run_in_child(self.source, tests, self.order.reached, budget, log)

    def tried(self, mutant: Mutant) -> Outcome:
        path = self.source / "vicreg" / mutant.file
        kept, times = path.read_text(), path.stat()
        compiled = Path(importlib.util.cache_from_source(str(path)))
        groups = self.order.tests(mutant, kept)
        path.write_text(mutant.text)
        hidden = compiled.with_suffix(".kept")
        compiled.rename(hidden)
        try:
            run = self._runs(groups)
        finally:
            path.write_text(kept)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            compiled.unlink(missing_ok=True)
            hidden.rename(compiled)
        caught = run.failed is not None
        if caught and "::" in run.failed:
            group = run.failed.partition("[")[0]
            self.order.found_before[mutant.file, group] += 1
        control = None
        if caught and zlib.crc32(mutant.key.encode()[::-1]) % CONTROLS == 0:
            same = [*run.ran, run.failed.removeprefix("no end of ")]
            control = self.run([one for one in same if "::" in one], 600.0).failed or ""
        by = run.failed or f"{len(run.ran)} of {sum(map(len, groups))} tests passed"
        return Outcome(
            mutant.key,
            mutant.state,
            mutant.line,
            caught,
            by,
            run.seconds,
            len(run.ran),
            control,
        )

    def _runs(self, groups: list[list[str]]) -> Run:
        """Run the tests, each group in a new child."""
        whole = Run(None, [], 0.0)
        for tests in groups:
            is_elsewhere = tests[0].partition("::")[0] in ALL_ELSEWHERE
            run = self.run(tests, PROCESSES if is_elsewhere else self.budget)
            whole.ran += run.ran
            whole.seconds += run.seconds
            if run.failed is not None:
                whole.failed = run.failed
                break
        return whole


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _files() -> list[str]:
    folder = ROOT / PACKAGE
    found = (path for pattern in FILES for path in sorted(folder.glob(pattern)))
    return [path.relative_to(folder).as_posix() for path in found]


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"must be K/N with K from 1 to N, as 1/8; got {text!r}")
    return int(number), int(count)


def _above_zero(text: str) -> int:
    if not (text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"must be an integer above 0; got {text!r}")
    return int(text)


_worker: Worker | None = None


def _begin(order: Order, budget: float, base: str) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker = Worker(order, budget, Path(tempfile.mkdtemp(dir=base)))


def _try(mutant: Mutant) -> Outcome:
    assert _worker is not None
    return _worker.tried(mutant)


def _failing(tests: list[str]) -> str | None:
    """Return which of `tests` fails on the package itself."""
    assert _worker is not None
    return _worker.run(tests, 900.0).failed


def import_libraries() -> None:
    # What processes of the tests compile of a mutant must not be there for the next one.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = False  # of the tests themselves, whatever is set
    # JAX and Python warn of a fork where there are threads: none has been started here.
    warnings.filterwarnings("ignore", message=".*fork", category=RuntimeWarning)
    for name in IMPORTED:
        with suppress(ImportError):
            importlib.import_module(name)
    assert "vicreg" not in sys.modules
    gc.freeze()  # or each child would go through all of it, and so copy it


def try_all(mutants: list[Mutant], order: Order, budget: float, workers: int) -> list[Outcome]:
    """Try the mutants, keep and return what became of each, and print those not caught."""
    begun = time.monotonic()
    outcomes: list[Outcome] = []
    with (
        tempfile.TemporaryDirectory() as base,
        multiprocessing.get_context("fork").Pool(workers, _begin, (order, budget, base)) as pool,
        (KEPT / "results").open("a") as results,
    ):
        for outcome in pool.imap_unordered(_try, mutants):
            outcomes.append(outcome)
            print(json.dumps(asdict(outcome)), file=results, flush=True)
            if not outcome.caught:
                print(f"{outcome.key} (line {outcome.line})\n    {outcome.by}", flush=True)
            if outcome.control:
                print(f"the package itself failed {outcome.control}", flush=True)
            if len(outcomes) % 20 == 0 or len(outcomes) == len(mutants):
                missed = sum(not one.caught for one in outcomes)
                minutes = (time.monotonic() - begun) / 60
                print(
                    f"-- {len(outcomes)} of {len(mutants)} tried, {missed} not caught, "
                    f"{minutes:.1f} min",
                    flush=True,
                )
        found_by = sorted({one.by for one in outcomes if one.by in order.reached.seconds})
        failing = pool.apply(_failing, (found_by,)) if found_by else None
        if failing is not None:
            print(f"the package itself failed {failing}: what it caught does not count")
            for one in outcomes:
                if one.by == failing:
                    one.caught, one.control = False, failing
                    print(json.dumps(asdict(one)), file=results)
        controls = [one for one in outcomes if one.control is not None]
        failed = sum(bool(one.control) for one in controls)
        print(f"-- {len(controls)} controls: the package itself failed {failed}")
    return outcomes


def known_results(mutants: list[Mutant]) -> dict[str, Outcome]:
    """Return what is known from former runs: the last of each mutant."""
    path = KEPT / "results"
    lines = path.read_text().splitlines() if path.exists() else []
    own = {one.key: one for one in (Outcome(**json.loads(line)) for line in lines)}
    return recorded_results(mutants) | own


def recorded_results(mutants: list[Mutant]) -> dict[str, Outcome]:
    """Return what the record in the repository says of the mutants."""
    record = json.loads(RECORD.read_text())
    found: dict[str, Outcome] = {}
    for mutant in mutants:
        kept = record["tried"].get(mutant.file, {}).get(mutant.id)
        if kept is None:
            continue
        state, by, control = kept.split(maxsplit=2)
        test = None if by == "-" else record["tests"][int(by)]
        found[mutant.key] = Outcome(
            *(mutant.key, mutant.state if mutant.state.startswith(state) else "", mutant.line),
            *(test is not None, test or "", 0.0),
            control={"passed": "", "-": None}.get(control, control),
        )
    return found


def reached_by_tests(again: list[str] | None) -> Reached:
    """Return which tests reach which lines; find it out where that is not known yet."""
    path = KEPT / "reached.json"
    files = [f"tests/test_{name}.py" for name in TESTS] if again is None else again
    if again is None and path.exists():
        return Reached.load(path)
    print(f"-- which tests of {len(files)} files reach which lines", flush=True)
    found = KEPT / "found.json"
    KEPT.mkdir(exist_ok=True)
    subprocess.run([sys.executable, __file__, "--find", *files], cwd=ROOT, check=True)
    reached = Reached.load(found)
    if path.exists():
        before = Reached.load(path)
        before.add(reached, reached.sources)
        reached = before
    reached.save(path)
    found.unlink()
    return reached


def listed() -> dict[str, str]:
    """Return the mutants that cannot be caught, by name, each with the reason."""
    files = tomllib.loads(LISTED.read_text())
    return {f"{file} {name}": why for file, ones in files.items() for name, why in ones.items()}


def record(mutants: list[Mutant]) -> dict[str, Any]:
    """Return what is kept of all runs, and what the page in the docs shows of it."""
    known, excused = known_results(mutants), listed()
    files: dict[str, Counter[str]] = {file: Counter() for file in _files()}
    tried: dict[str, dict[str, str]] = {file: {} for file in files}
    caught_by = sorted({outcome.by for outcome in known.values() if outcome.caught})
    places = {test: str(place) for place, test in enumerate(caught_by)}
    open_: list[str] = []
    for mutant in mutants:
        count = files[mutant.file]
        count["mutants"] += 1
        outcome = known.get(mutant.key)
        if outcome is None or outcome.state != mutant.state:
            continue
        by = places[outcome.by] if outcome.caught else "-"
        control = "-" if outcome.control is None else outcome.control or "passed"
        tried[mutant.file][mutant.id] = f"{mutant.state[:8]} {by} {control}"
        count["tried"] += 1
        if outcome.caught:
            count["caught"] += 1
        elif mutant.key in excused:
            count["listed"] += 1
        else:
            open_.append(mutant.key)
    packages = ("cosmic-ray", "numpy", "torch", "jax", "mlx", "dask", "array-api-strict", "ndonnx")
    controls = [one for one in known.values() if one.control is not None]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"Python": sys.version.split()[0]}
        | {name: metadata.version(name) for name in packages},
        "files": files,
        "controls": [len(controls), sum(bool(one.control) for one in controls)],
        "not caught": open_,
        "tests": caught_by,
        "tried": {file: dict(sorted(ones.items())) for file, ones in tried.items() if ones},
    }


def table() -> str:
    """Return the numbers in the record as a table in Markdown."""
    kept = json.loads(RECORD.read_text())
    names = ("mutants", "tried", "caught", "listed")
    rows = [
        (f"`{file}`", *(count.get(name, 0) for name in names))
        for file, count in kept["files"].items()
        if count
    ]
    whole = ("**all**", *(sum(row[place] for row in rows) for place in range(1, 5)))
    lines = ["| file | mutants | tried | caught | cannot be caught | not caught |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for file, mutants, tried, caught, excused in [*rows, whole]:
        missed = tried - caught - excused
        lines.append(f"| {file} | {mutants} | {tried} | {caught} | {excused} | {missed} |")
    return "\n".join(lines)


def conditions() -> str:
    """Return when the record was written, with which versions, in Markdown."""
    kept = json.loads(RECORD.read_text())
    versions = ", ".join(f"{name} {version}" for name, version in kept["versions"].items())
    count, failed = kept["controls"]
    mutants, tried, caught, excused = (
        sum(one.get(name, 0) for one in kept["files"].values())
        for name in ("mutants", "tried", "caught", "listed")
    )
    untried = (
        f"{mutants - tried} have not been tried on this code yet. " if mutants > tried else ""
    )
    return (
        f"As of {kept['date']}, with {versions}: of {tried} that were tried, {caught} were caught "
        f"({caught / tried:.1%}), and {excused} cannot be caught, for the reasons below; without "
        f"these it is {caught / (tried - excused):.1%}. {untried}"
        f"The tests of {count} caught mutants ran on the package as it is: {failed} failed."
    )


def reasons() -> str:
    """Return the list of those that cannot be caught, with the reasons, in Markdown."""
    files = tomllib.loads(LISTED.read_text())
    lines = []
    for file, ones in files.items():
        lines.append(f"\n`{file}`\n")
        lines += [f"- ``{name}``<br>{why}" for name, why in ones.items()]
    return "\n".join(lines)


def not_caught() -> str:
    """Return those in the record that should be caught, in Markdown."""
    missed = json.loads(RECORD.read_text())["not caught"]
    return "\n".join(f"- ``{key}``" for key in missed) or "None."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main() -> int:
    """Try the chosen mutants, print those that were not caught, and return the exit status."""
    parser = _Parser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="part of a mutant's name")
    parser.add_argument(
        "--part", type=_part, default=(1, 1), metavar="K/N", help="try part K of N of them"
    )
    parser.add_argument("--list", action="store_true", help="list the mutants and stop")
    parser.add_argument(
        "--record", action="store_true", help=f"write the results to {RECORD.name} and stop"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--again", action="store_true", help="try those too that were caught")
    which.add_argument("--untried", action="store_true", help="only those never tried before")
    parser.add_argument(
        "--seconds",
        type=_above_zero,
        default=120,
        metavar="S",
        help="of computing for each mutant",
    )
    parser.add_argument(
        "--workers", type=_above_zero, default=os.cpu_count(), metavar="N", help="processes"
    )
    parser.add_argument(
        "--reach", nargs="+", metavar="FILE", help="files of tests that are new or have changed"
    )
    parser.add_argument("--find", nargs="+", help=argparse.SUPPRESS)  # by a process of its own
    given = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
        os.environ.setdefault(variable, "1")
    if given.find:
        find_reached(given.find).save(KEPT / "found.json")
        return 0
    every = all_mutants()
    excused = listed()
    gone = excused.keys() - {mutant.key for mutant in every}
    if gone:
        print(*(f"mutants.toml lists no mutant: {key}" for key in sorted(gone)), sep="\n")
        return 1
    mutants = [
        mutant
        for mutant in every
        if mutant.is_in(given.part) and all(word in mutant.key for word in given.words)
    ]
    if not mutants:
        parser.error(f"no mutant is called so: {' '.join(given.words)}")
    if given.list:
        print(*(f"{mutant.key} (line {mutant.line})" for mutant in mutants), sep="\n")
        return 0
    if given.record:
        RECORD.write_text(json.dumps(record(every), indent=1) + "\n")
        return 0
    known = known_results(every)
    if not given.again:
        mutants = [one for one in mutants if not _is_known(one, known.get(one.key), given.untried)]
    caught_by = {
        key: one.by.removeprefix("no end of ") for key, one in known.items() if one.caught
    }
    order = Order(reached_by_tests(given.reach), caught_by)
    import_libraries()
    outcomes = try_all(mutants, order, given.seconds, given.workers)
    wrong = [one for one in outcomes if one.caught == (one.key in excused)]
    for one in wrong:
        if one.caught:
            print(f"mutants.toml lists {one.key}\n    but it was caught: {one.by}")
    return 1 if wrong or any(one.control for one in outcomes) else 0


def _is_known(mutant: Mutant, outcome: Outcome | None, even_if_missed: bool) -> bool:
    is_same = outcome is not None and outcome.state == mutant.state
    return is_same and (outcome.caught or even_if_missed)


def all_mutants() -> list[Mutant]:
    """Return the mutants of every file."""
    path = KEPT / "mutants.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    made, made_by = {}, _hash(Path(__file__).read_text())
    for file in _files():
        source = (ROOT / PACKAGE / file).read_text()
        name = _hash(f"{made_by}\n{file}\n{source}")
        made[name] = kept.get(name) or [asdict(one) for one in mutants_of(file, source)]
    KEPT.mkdir(exist_ok=True)
    path.write_text(json.dumps(made))
    return [
        Mutant(**one | {"lines": tuple(one["lines"])}) for ones in made.values() for one in ones
    ]


if __name__ == "__main__":
    sys.exit(main())
