"""Settings: where each may come from, what it may be, and the errors for all else."""

from __future__ import annotations

import dataclasses
import doctest
import math
import os
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from conveyor import settings as module
from conveyor.backoff import DEFAULT_BACKOFF, linear
from conveyor.errors import ConfigurationError
from conveyor.settings import (
    Settings,
    available_cpus,
    check_setting,
    find_broker,
    resolve_settings,
)

NAMES = [field.name for field in dataclasses.fields(Settings)]


def write_pyproject(folder: Path, content: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(content)


def resolve(
    folder: Path, environ: dict[str, str] | None = None, **arguments: Any
) -> tuple[Settings, dict[str, str]]:
    return resolve_settings(arguments, environ=environ or {}, directory=folder)


def test_every_setting_has_its_default_and_says_so(tmp_path: Path) -> None:
    write_pyproject(tmp_path, "")
    settings, origins = resolve(tmp_path)
    assert settings == Settings()
    assert origins == dict.fromkeys(NAMES, "default")


@pytest.mark.parametrize("name", NAMES)
def test_every_default_is_an_allowed_value(name: str) -> None:
    default = getattr(Settings(), name)
    assert check_setting(name, default, "argument") == default


def test_every_setting_is_described() -> None:
    lines = Path(module.__file__).read_text().splitlines()
    for name in NAMES:
        field = next(i for i, line in enumerate(lines) if line.startswith(f"    {name}: "))
        assert lines[field - 1].startswith("    #: "), name


def test_the_order_is_argument_then_environment_then_pyproject(tmp_path: Path) -> None:
    write_pyproject(tmp_path, "[tool.conveyor]\ngrace = 1\nthreads = 1\ncoroutines = 1\n")
    environ = {"CONVEYOR_GRACE": "2", "CONVEYOR_THREADS": "2"}
    settings, origins = resolve(tmp_path, environ, grace=3)
    assert (settings.grace, settings.threads, settings.coroutines) == (3, 2, 1)
    assert origins["grace"] == "argument"
    assert origins["threads"] == "CONVEYOR_THREADS"
    assert origins["coroutines"] == "pyproject.toml"
    assert origins["priority"] == "default"


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("retry_limit", 3, 3),
        ("retry_limit", math.inf, math.inf),
        ("error_retry_limit", None, None),
        ("backoff", "linear", linear(1)),
        ("backoff", DEFAULT_BACKOFF, DEFAULT_BACKOFF),
        ("execution_timeout", timedelta(minutes=2), 120),
        ("execution_timeout", None, math.inf),
        ("acknowledgement_interval", 0.5, 0.5),
        ("expires", math.inf, math.inf),
        ("priority", 9, 9),
        ("remove_on_failed", True, True),
        ("retain_success", 0, 0),
        ("max_payload", "2M", 2 << 20),
        ("max_payload", math.inf, math.inf),
        ("max_memory_per_child", "200 MiB", 200 << 20),
        ("max_memory_per_child", "3g", 3 << 30),
        ("max_memory_per_child", 1_000, 1_000),
        ("concurrency", None, None),
        ("grace", 0, 0),
        ("retry_on", OSError, (OSError,)),
        ("no_retry_on", [OSError, KeyError], (OSError, KeyError)),
        ("headers", {"tenant": "a"}, {"tenant": "a"}),
        ("beat", False, False),
        ("idle_timeout", timedelta(seconds=2), 2),
        ("log_level", "debug", "DEBUG"),
        ("log_format", "json", "json"),
    ],
)
def test_an_argument_is_kept_as(name: str, given: Any, kept: object, tmp_path: Path) -> None:
    settings, origins = resolve(tmp_path, **{name: given})
    assert getattr(settings, name) == kept
    assert origins[name] == "argument"


@pytest.mark.parametrize(
    ("name", "text", "kept"),
    [
        ("retry_limit", "3", 3),
        ("retry_limit", "inf", math.inf),
        ("backoff", "constant", check_setting("backoff", "constant", "argument")),
        ("stall_timeout", "2.5", 2.5),
        ("execution_timeout", "inf", math.inf),
        ("remove_on_success", "true", True),
        ("remove_on_success", "1", True),
        ("remove_on_success", "False", False),
        ("remove_on_success", "0", False),
        ("max_payload", "4096", 4_096),
        ("max_memory_per_child", "200M", 200 << 20),
        ("headers", '{"tenant": "a"}', {"tenant": "a"}),
        ("beat", "0", False),
        ("log_format", "json", "json"),
    ],
)
def test_a_variable_is_read_as(name: str, text: str, kept: object, tmp_path: Path) -> None:
    settings, _ = resolve(tmp_path, {f"CONVEYOR_{name.upper()}": text})
    assert getattr(settings, name) == kept


def test_an_empty_variable_is_not_set(tmp_path: Path) -> None:
    settings, origins = resolve(tmp_path, {"CONVEYOR_GRACE": ""})
    assert (settings.grace, origins["grace"]) == (25, "default")


WRONG: list[tuple[str, Any]] = [
    ("retry_limit", -1),
    ("retry_limit", 1.5),
    ("retry_limit", True),
    ("retry_limit", 2**31),
    ("backoff", "cubic"),
    ("backoff", 3),
    ("execution_timeout", 0),
    ("stall_timeout", -1),
    ("stall_timeout", None),
    ("stall_timeout", "15"),
    ("expires", math.nan),
    ("priority", 10),
    ("priority", None),
    ("remove_on_success", 1),
    ("retain_failed", "forever"),
    ("max_payload", 0),
    ("max_payload", "2X"),
    ("max_payload", 1.5),
    ("concurrency", 0),
    ("threads", math.inf),
    ("max_tasks_per_child", 0),
    ("grace", -0.1),
    ("retry_on", "OSError"),
    ("no_retry_on", [int]),
    ("headers", {"a": 1}),
    ("log_level", "LOUD"),
    ("log_level", 20),
    ("log_format", "xml"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_argument_is_named_with_what_is_allowed(
    name: str, value: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(tmp_path, **{name: value})
    assert str(caught.value).startswith(f"{name} cannot be {value!r} (argument): use ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("grace", "soon"),
        ("retry_limit", "1.5"),
        ("remove_on_success", "perhaps"),
        ("max_memory_per_child", "200MM"),
        ("log_format", "xml"),
        ("backoff", "cubic"),
    ],
)
def test_a_wrong_variable_is_named_with_what_is_allowed(
    name: str, text: str, tmp_path: Path
) -> None:
    variable = f"CONVEYOR_{name.upper()}"
    with pytest.raises(
        ConfigurationError, match=rf"{name} cannot be '{text}' \({variable}\): use "
    ):
        resolve(tmp_path, {variable: text})


def test_a_wrong_value_in_pyproject_is_named_with_what_is_allowed(tmp_path: Path) -> None:
    write_pyproject(tmp_path, '[tool.conveyor]\nthreads = "two"\n')
    with pytest.raises(
        ConfigurationError, match=r"threads cannot be 'two' \(pyproject.toml\): use a whole number"
    ):
        resolve(tmp_path)


def test_an_unknown_argument_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"'retry_limt'.*did you mean 'retry_limit'"):
        resolve(tmp_path, retry_limt=3)
    with pytest.raises(ConfigurationError, match=r"'brokr'.*did you mean 'broker'"):
        resolve(tmp_path, brokr="redis://db")


def test_an_unknown_key_in_pyproject_is_answered_with_the_nearest(tmp_path: Path) -> None:
    write_pyproject(tmp_path, "[tool.conveyor]\ngraec = 3\n")
    with pytest.raises(ConfigurationError, match=r"'graec'.*pyproject.toml.*did you mean 'grace'"):
        resolve(tmp_path)


def test_an_unknown_variable_is_only_warned_about(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"CONVEYOR_GRCE.*did you mean CONVEYOR_GRACE"):
        settings, _ = resolve(tmp_path, {"CONVEYOR_GRCE": "3"})
    assert settings.grace == 25


def test_what_is_read_elsewhere_is_not_warned_about(tmp_path: Path) -> None:
    names = ("BROKER", "APP", "DEBUG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve(tmp_path, {f"CONVEYOR_{name}": "x" for name in names})


def test_the_apps_own_keys_may_stand_in_pyproject(tmp_path: Path) -> None:
    write_pyproject(tmp_path, '[tool.conveyor]\napp = "shop.tasks"\nthreads = 2\n')
    assert resolve(tmp_path)[0].threads == 2


@pytest.mark.parametrize("name", ["queue", "namespace", "timezone"])
def test_what_only_an_app_can_say_is_refused_in_pyproject(name: str, tmp_path: Path) -> None:
    write_pyproject(tmp_path, f'[tool.conveyor]\n{name} = "x"\n')
    with pytest.raises(ConfigurationError, match=f"there is no setting '{name}'"):
        resolve(tmp_path)


def test_a_broker_is_found_in_the_environment_then_in_pyproject(tmp_path: Path) -> None:
    assert find_broker(environ={}, directory=tmp_path) is None
    write_pyproject(tmp_path, '[tool.conveyor]\nbroker = "redis://there"\n')
    assert find_broker(environ={}, directory=tmp_path) == "redis://there"
    environ = {"CONVEYOR_BROKER": "redis://here"}
    assert find_broker(environ=environ, directory=tmp_path) == "redis://here"
    write_pyproject(tmp_path, "[tool.conveyor]\nbroker = 6379\n")
    with pytest.raises(ConfigurationError, match=r"broker cannot be 6379 \(pyproject.toml\)"):
        find_broker(environ={}, directory=tmp_path)


def test_the_nearest_pyproject_counts_even_without_our_table(tmp_path: Path) -> None:
    write_pyproject(tmp_path, "[tool.conveyor]\nthreads = 2\n")
    assert resolve(tmp_path / "a" / "b")[0].threads == 2
    write_pyproject(tmp_path / "a", "[tool.other]\n")
    assert resolve(tmp_path / "a" / "b")[0].threads == 1


def test_a_relative_directory_is_searched_upwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pyproject(tmp_path, "[tool.conveyor]\nthreads = 2\n")
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    assert resolve(Path())[0].threads == 2


@pytest.mark.parametrize(
    "content", ["", "tool = 'conveyor'\n", "[project]\nname = 'conveyor'\n", "[tool.conveyor]\n"]
)
def test_a_pyproject_may_say_nothing(content: str, tmp_path: Path) -> None:
    write_pyproject(tmp_path, content)
    assert resolve(tmp_path)[0] == Settings()


@pytest.mark.parametrize("content", ["[tool.conveyor\n", "[tool]\nconveyor = 3\n"])
def test_a_malformed_pyproject_is_an_error_that_names_it(content: str, tmp_path: Path) -> None:
    write_pyproject(tmp_path, content)
    with pytest.raises(ConfigurationError, match=r"pyproject\.toml"):
        resolve(tmp_path)


def test_a_pyproject_that_is_not_text_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes(b"[tool.conveyor]\n\xff")
    with pytest.raises(ConfigurationError, match=r"cannot read .*pyproject\.toml"):
        resolve(tmp_path)


def test_a_pyproject_is_not_read_when_nothing_is_missing(tmp_path: Path) -> None:
    write_pyproject(tmp_path, "[tool.conveyor\n")
    settings = {name: getattr(Settings(), name) for name in NAMES}
    assert resolve(tmp_path, **settings)[0] == Settings()


def test_an_acknowledgement_comes_before_the_stall(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(tmp_path, {"CONVEYOR_STALL_TIMEOUT": "5"}, acknowledgement_interval=5)
    assert "acknowledgement_interval=5.0 (argument)" in str(caught.value)
    assert "stall_timeout=5.0 (CONVEYOR_STALL_TIMEOUT)" in str(caught.value)


def cgroup(root: Path, own: str, quotas: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"1:cpu:/old\n0::{own}\n")
    for group, quota in quotas.items():
        folder = root / "sys/fs/cgroup" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(quota + "\n")
    return root


@pytest.mark.parametrize(
    ("own", "quotas"),
    [
        ("/", {".": "100000 100000"}),
        ("/", {".": "50000 100000"}),
        ("/a/b", {"a": "100000 100000", "a/b": "max 100000"}),
        ("/a/b", {"a": "max 100000", "a/b": "1000 100000"}),
    ],
)
def test_a_quota_of_one_cpu_or_less_is_one_cpu(
    own: str, quotas: dict[str, str], tmp_path: Path
) -> None:
    assert available_cpus(cgroup(tmp_path, own, quotas)) == 1


@pytest.mark.parametrize(
    "quotas", [{}, {"a": "max 100000"}, {"a": "99900000 100000"}, {"other": "1000 100000"}]
)
def test_without_a_lower_quota_the_affinity_counts(quotas: dict[str, str], tmp_path: Path) -> None:
    assert available_cpus(cgroup(tmp_path, "/a", quotas)) == len(os.sched_getaffinity(0))


def test_without_cgroups_the_affinity_counts(tmp_path: Path) -> None:
    assert available_cpus(tmp_path) == len(os.sched_getaffinity(0))


def test_the_affinity_is_obeyed(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert available_cpus(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_the_examples_in_the_docstrings() -> None:
    examples = {"timedelta": timedelta}
    assert doctest.testmod(module, extraglobs=examples).failed == 0
