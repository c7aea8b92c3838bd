"""The project's sessions: `nox -l` lists them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["tests", "lint", "types"]

PYPROJECT = nox.project.load_toml("pyproject.toml")

# PyTorch is pinned, so that a build for this CPU is installed and not the newest of the index.
TORCH = "torch==2.13.0"

# What the tests of each library need; NumPy holds the data. A test compares it with the list of
# libraries in vicreg.tools.libraries and the extras in pyproject.toml.
LIBRARIES = {
    "numpy": ["numpy>=2.0"],
    "torch": [TORCH, "numpy>=2.0"],
    "jax": ["jax>=0.7.2", "numpy>=2.0"],
    "mlx": ["mlx[cpu]>=0.32.3", "numpy>=2.0"],
    "dask": ["dask[array]>=2025.5", "numpy>=2.0"],
    "array_api_strict": ["array-api-strict>=2.3", "numpy>=2.0"],
    "ndonnx": ["ndonnx>=0.17", "onnxruntime>=1.20", "numpy>=2.0"],
    "mparray": ["mparray>=0.2.2", "numpy>=2.0"],
    "cupy": ["cupy-cuda12x>=14", "numpy>=2.0"],
}

# What `numpydoc lint` reads: where the public docstrings stand, as in .pre-commit-config.yaml.
PUBLIC_MODULES = [
    "src/vicreg/__init__.py",
    *(f"src/vicreg/{name}.py" for name in ("distributed", "jax", "lightning", "testing", "torch")),
    *(f"src/vicreg/{name}.py" for name in ("_conventions", "_diagnostics", "_monitor")),
    *(f"src/vicreg/_losses/{name}.py" for name in ("vcreg", "vicreg", "vicregl")),
    *(f"src/vicreg/_core/{name}.py" for name in ("communicator", "plan")),
    *(f"src/vicreg/tools/identification/{name}.py" for name in ("__init__", "result")),
]

# Installed without what they depend on: what is needed of that is there.
LIGHTNING = ["lightning>=2.6", "pytorch-lightning", "lightning-utilities", "torchmetrics"]


def group(name: str) -> list[str]:
    return nox.project.dependency_groups(PYPROJECT, name)


# One process per processor, each with one thread, as more threads would wait for each other.
IN_PARALLEL = ["-n", "auto", "--maxprocesses", "8", "--dist", "worksteal"]
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",  # PyTorch, scikit-learn
    "OPENBLAS_NUM_THREADS": "1",  # NumPy
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}


def install_every_library(session: nox.Session) -> None:
    # PyTorch first, so that no other package installs another build of it.
    session.install(TORCH)
    session.install(".[cpu,cupy]", *group("test"))
    session.install("--no-deps", "pytorch-metric-learning>=2.9", "tqdm")
    session.install("flax>=0.12", "equinox>=0.13")  # to test vicreg.jax.vcreg inside their modules
    session.install("distributed>=2025.5")  # to test Dask's arrays on a cluster of two workers
    session.install("mpi4py>=4")  # its tests are skipped where there is no mpiexec
    session.install("--no-deps", *LIGHTNING)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests except those marked long, on every library."""
    install_every_library(session)
    session.run("pytest", *IN_PARALLEL, "-m", "not long", *session.posargs, env=ONE_THREAD)


@nox.session
def tests_long(session: nox.Session) -> None:
    """The tests that `tests` leaves out; `-- --part 1/12` for a twelfth of them."""
    install_every_library(session)
    session.run("pytest", *IN_PARALLEL, "-m", "long", *session.posargs, env=ONE_THREAD)


@nox.session
def tests_all(session: nox.Session) -> None:
    """Every test, with branch coverage."""
    install_every_library(session)
    coverage = ["--cov", "--cov-report=term"]
    session.run("pytest", *IN_PARALLEL, *coverage, *session.posargs, env=ONE_THREAD)


@nox.session
def faults(session: nox.Session) -> None:
    """Plant faults in the package, and check that the default tests find each."""
    install_every_library(session)
    session.run("python", "tests/planted_faults.py", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Change the package in thousands of small places; `-- --part 1/6` for a sixth of them."""
    install_every_library(session)
    session.install(*group("mutants"))
    session.run("python", "tests/mutants.py", *session.posargs)


@nox.session
@nox.parametrize("library", list(LIBRARIES))
def tests_each(session: nox.Session, library: str) -> None:
    """The tests of one library, in an environment without the others."""
    session.install(".", *LIBRARIES[library], "rich", *group("test"))
    session.run("pytest", "--library", library, *session.posargs)


# The libraries whose oldest releases docs/versions.md names.
VERSIONED = ["numpy", "torch", "jax", "mlx", "dask"]


def at_their_floors(requirements: list[str]) -> list[str]:
    """Return requirements such as ``numpy>=2.0`` as ``numpy==2.0``."""
    return [requirement.replace(">=", "==") for requirement in requirements]


@nox.session
@nox.parametrize("library", VERSIONED)
def tests_oldest(session: nox.Session, library: str) -> None:
    """The default tests of one library, with the oldest releases that pyproject.toml allows."""
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    floors = at_their_floors([*extras[library], *extras["numpy"]])
    session.install(".", *dict.fromkeys(floors), "rich", *group("test"))
    # By itself: array-api-extra, which the tests use, asks for a newer one, and works without.
    session.install("--no-deps", *at_their_floors(project["dependencies"]))
    session.run("pytest", "--library", library, "-m", "not long", *session.posargs)


@nox.session
@nox.parametrize("library", VERSIONED)
def tests_newest(session: nox.Session, library: str) -> None:
    """The default tests of one library, with the newest releases and pre-releases."""
    newest = [re.split("[>=]", requirement)[0] for requirement in LIBRARIES[library]]
    session.install(".", "rich", *group("test"))
    session.install("--upgrade", "--pre", *newest, "array-api-compat")
    session.run("pytest", "--library", library, "-m", "not long", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check the style, the docstrings, what imports what, and the packages to publish."""
    session.install(*group("lint"), ".")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("numpydoc", "lint", *PUBLIC_MODULES)
    session.run("lint-imports")
    build(session, session.create_tmp())


@nox.session
def package(session: nox.Session) -> None:
    """Build what is published into `dist`; `-- --tag v0.1.0` says which version it must be."""
    session.install(*group("lint"), ".")
    if session.posargs:
        _, tag = session.posargs
        session.run("python", "-c", IS_THE_VERSION, tag)
    shutil.rmtree("dist", ignore_errors=True)
    build(session, "dist")


IS_THE_VERSION = """
import sys, vicreg
if sys.argv[1] != f"v{vicreg.__version__}":
    sys.exit(f"the tag {sys.argv[1]} is not that of version {vicreg.__version__}")
"""


def build(session: nox.Session, folder: str) -> None:
    """Build the sdist and from it the wheel, and check how an index would show them."""
    session.run("python", "-m", "build", "--outdir", folder)
    session.run("twine", "check", "--strict", *map(str, Path(folder).glob("vicreg-*")))


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package, and what type checkers make of its users' code."""
    session.install(TORCH)
    session.install(".[numpy,jax,mlx,command,plot]", *group("types"), *group("test"))
    session.run("mypy")
    session.run("pytest", "tests/test_types.py")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site: run its code, its commands and its examples, draw its pictures."""
    session.install(TORCH)
    session.install(".[numpy,jax,mlx,dask,command,plot]", *group("docs"))
    session.install("--no-deps", "pytorch-metric-learning>=2.9", "tqdm", *LIGHTNING)
    session.install("mpi4py>=4")  # for an example, which does without where there is no mpiexec
    shutil.rmtree("docs/_build", ignore_errors=True)
    flags = ["--fail-on-warning", "--keep-going", "-b", "html"]
    session.run("sphinx-build", *flags, *session.posargs, "docs", "docs/_build/html")


def install_for_benchmarks(session: nox.Session) -> None:
    session.install(TORCH)
    session.install(".[cpu,cupy]")
    session.install("--no-deps", "pytorch-metric-learning>=2.9", "tqdm")
    if shutil.which("nvidia-smi"):  # JAX needs a separate package for GPUs
        session.install("jax[cuda12]>=0.7.2")


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmark, and print the wanted figures beside the measured ones."""
    install_for_benchmarks(session)
    session.run("vicreg", "bench", *session.posargs)
    session.run("python", "benchmarks/wanted.py")


@nox.session
def gpu(session: nox.Session) -> None:
    """Check and measure the package on this machine's GPU, and write the report to commit."""
    install_for_benchmarks(session)
    session.install(*group("test"))
    session.run("python", "benchmarks/gpu.py", *session.posargs)
