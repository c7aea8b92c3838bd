"""The workflows and the hooks name what is there: sessions, libraries, versions."""

from __future__ import annotations

import ast
import itertools
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOXFILE = ast.parse((ROOT / "noxfile.py").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


TESTS = read(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]


def steps(workflow: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return each step of a workflow, with its job."""
    jobs = read(workflow)["jobs"].values()
    return [(job, step) for job in jobs for step in job.get("steps", ())]


def combinations(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the values of a job's matrix in each of its runs."""
    matrix = dict(job.get("strategy", {}).get("matrix", {}))
    more = matrix.pop("include", [])
    return [
        dict(zip(matrix, one, strict=True)) for one in itertools.product(*matrix.values())
    ] + more


def filled(text: str, values: dict[str, Any]) -> str:
    return re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda match: str(values[match[1]]), text)


def commands() -> list[str]:
    """Return each command of each run of each job, with the values of its matrix."""
    return [
        filled(step["run"], values)
        for workflow in WORKFLOWS
        for job, step in steps(workflow)
        if "run" in step
        for values in combinations(job)
    ]


def sessions() -> set[str]:
    """Return the names of the sessions of noxfile.py."""
    return {
        node.name
        for node in NOXFILE.body
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(one).startswith("nox.session") for one in node.decorator_list)
    }


def constant(name: str) -> Any:
    """Return what noxfile.py assigns to a name; of what is not a literal, the keys."""
    (value,) = (
        node.value
        for node in NOXFILE.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    )
    if isinstance(value, ast.Dict):
        return [ast.literal_eval(key) for key in value.keys if key is not None]
    return ast.literal_eval(value)


def test_each_session_that_a_workflow_runs_is_there() -> None:
    run = [match for text in commands() if (match := re.match(r'nox -s "?(\w+)(\(.*\))?', text))]
    assert {"tests", "tests_each", "tests_oldest", "lint", "types", "docs", "package"} <= {
        match[1] for match in run
    }
    for match in run:
        assert match[1] in sessions()
        if match[2] is not None:
            library = re.fullmatch(r"\(library='(\w+)'\)", match[2])
            assert library is not None, match[0]
            assert library[1] in constant("LIBRARIES")


def test_nothing_is_run_but_sessions_and_what_they_need() -> None:
    needed = (
        r"nox -s .*|python -m pip install nox|sudo apt-get update -qq && sudo apt-get install .*"
    )
    for text in commands():
        assert re.fullmatch(needed, text), text


def test_each_library_is_tested_alone() -> None:
    libraries = TESTS["library-alone"]["strategy"]["matrix"]["library"]
    assert libraries == constant("LIBRARIES")


def test_all_parts_of_the_long_tests_run() -> None:
    parts = TESTS["long"]["strategy"]["matrix"]["part"]
    assert parts == list(range(1, len(parts) + 1))
    assert f"--part ${{{{ matrix.part }}}}/{len(parts)}" in TESTS["long"]["steps"][-1]["run"]


def test_the_versions_of_python_are_those_of_the_classifiers() -> None:
    pattern = r"Programming Language :: Python :: (3\.\d+)"
    named = [re.fullmatch(pattern, line) for line in PYPROJECT["project"]["classifiers"]]
    versions = [match[1] for match in named if match]
    assert TESTS["all-libraries"]["strategy"]["matrix"]["python"] == versions
    assert PYPROJECT["project"]["requires-python"] == f">={versions[0]}"
    for workflow in WORKFLOWS:
        for job, step in steps(workflow):
            if "python-version" in step.get("with", {}):
                for values in combinations(job):
                    assert filled(step["with"]["python-version"], values) in versions


def test_only_publishing_may_do_more_than_read() -> None:
    for workflow in WORKFLOWS:
        assert read(workflow)["permissions"] == {"contents": "read"}
        for name, job in read(workflow)["jobs"].items():
            more = {"contents": "read", "id-token": "write"} if name == "publish" else None
            assert job.get("permissions") == more


def test_what_is_published_was_tested() -> None:
    jobs = read(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    assert jobs["tests"]["uses"] == "./.github/workflows/tests.yml"
    assert jobs["publish"]["needs"] == "tests"


HOOKS = read(ROOT / ".pre-commit-config.yaml")["repos"]


@pytest.mark.parametrize("tool", ["ruff", "numpydoc"])
def test_hooks_have_the_versions_that_lint_has(tool: str) -> None:
    (line,) = (
        one for one in PYPROJECT["dependency-groups"]["lint"] if one.startswith(f"{tool}==")
    )
    (hook,) = (one for one in HOOKS if f"/{tool}" in one["repo"])
    assert hook["rev"] == line.replace(f"{tool}==", "v")


def test_the_hook_and_lint_read_the_same_docstrings() -> None:
    (hook,) = (hook for repo in HOOKS for hook in repo["hooks"] if "numpydoc" in hook["id"])
    (node,) = (
        node.value
        for node in NOXFILE.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PUBLIC_MODULES"
    )
    listed = eval(ast.unparse(node))
    paths = (path.relative_to(ROOT).as_posix() for path in (ROOT / "src").rglob("*.py"))
    assert {path for path in paths if re.search(hook["files"], path)} == set(listed)
