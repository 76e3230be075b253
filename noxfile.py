"""The checks: ``nox`` runs them all, ``nox -s lint`` one of them, ``nox -l`` lists them.

With ``--no-venv`` they run in the environment that is active, as ``.ci/run`` does.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "types", "layers", "tests", "examples", "docs"]


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format, by ruff."""
    install(session)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Types, by mypy and pyright, both strict."""
    install(session)
    session.run("mypy", *existing("conveyor", "examples"))
    session.run("pyright", *existing("conveyor", "examples"))


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """The tests, on every Python that is installed; takes pytest's arguments after ``--``."""
    install(session)
    session.run("pytest", *session.posargs)


@nox.session
def layers(session: nox.Session) -> None:
    """Dependencies between modules, by import-linter."""
    install(session)
    session.run("lint-imports", "--no-cache")


@nox.session
def examples(session: nox.Session) -> None:
    """Every example, as a user runs it."""
    install(session)
    for example in sorted(Path("examples").glob("*.py")):
        session.run("python", str(example))


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, into docs/_build; a link that leads nowhere fails."""
    install(session, "docs")
    session.run("sphinx-build", "-W", "--keep-going", "-n", "-q", "docs", "docs/_build")


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks; takes their arguments after ``--``."""
    install(session)
    session.run("python", "-m", "benchmarks", *session.posargs)


def install(session: nox.Session, extras: str = "dev,embedded,fast") -> None:
    """Install the project into the session's own environment, if it has one."""
    if session.virtualenv.venv_backend != "none":
        session.install("-e", f".[{extras}]")


def existing(*paths: str) -> list[str]:
    """Return those of the paths that exist."""
    return [path for path in paths if Path(path).exists()]
