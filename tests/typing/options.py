"""The types of a task's and a call's options, and of bound tasks."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import assert_type

from conveyor import (
    Context,
    Conveyor,
    RecurringRecord,
    TaskRecord,
    TaskResult,
    current_task,
    exponential,
)

app = Conveyor("typed", broker="redis://localhost", priority=3, grace=timedelta(minutes=1))


@app.task(bind=True)
def greet(context: Context, name: str) -> str:
    assert_type(context.task, TaskRecord)
    assert_type(context.fence, int)
    assert_type(context.update_progress(0.5), bool)
    return name


@app.task(bind=True, retry_limit=2)
async def visit(context: Context, name: str, *, twice: bool = False) -> int:
    assert_type(await context.aupdate({"name": name}), bool)
    if twice:
        context.retry(delay=1)
    return len(name)


def retry_slowly(task: TaskRecord, error: BaseException) -> float:
    return task.error_retries * 10.0


@app.task(
    name="reports.make",
    queue="reports",
    retry_limit=math.inf,
    error_retry_limit=3,
    stall_retry_limit=None,
    retry_on=(OSError, ValueError),
    no_retry_on=KeyError,
    backoff=retry_slowly,
    execution_timeout=timedelta(minutes=5),
    stall_timeout=30,
    acknowledgement_interval=5,
    expires=60,
    priority=9,
    remove_on_success=True,
    remove_on_failed=False,
    retain_success=math.inf,
    retain_failed=timedelta(days=1),
    headers={"tenant": "a"},
    bind=False,
)
def report(year: int) -> str:
    assert_type(current_task(), Context)
    return str(year)


@app.task(cron="*/5 * * * *", timezone="Europe/Berlin", catch_up="one", overlap="skip")
def recurring_report(year: int = 2027) -> str:
    return str(year)


@app.task(every=timedelta(minutes=5), bind=True)
async def recurring_visit(context: Context) -> int:
    return context.fence


async def recurring_entries() -> None:
    app.add_recurring("a", recurring_report.call(2027), every=30, catch_up="all")
    await app.aadd_recurring("a", recurring_visit.call(), cron="* * * * *")
    assert_type(app.remove_recurring("a"), bool)
    assert_type(await app.arecurring(), list[RecurringRecord])
    assert_type(app.recurring("default")[0].next_due_at, datetime)


def binding_drops_the_context() -> None:
    assert_type(greet.delay("a"), TaskResult[str])
    assert_type(greet.delay(name="a"), TaskResult[str])
    assert_type(greet("a"), str)
    assert_type(visit.delay("a", twice=True), TaskResult[int])
    assert_type(visit.delay("a").wait(), int)
    assert_type(report.delay(2027), TaskResult[str])


def call_options() -> None:
    chosen = report.options(id="r-2027", on_existing="replace_ended", backoff=exponential(1))
    assert_type(chosen.delay(2027), TaskResult[str])
    report.options(queue="q", expires=None, headers={}, backoff="linear", retry_limit=None)


def wrong_calls_of_bound_tasks(context: Context) -> None:
    greet.delay(1)  # error: arg-type | reportArgumentType
    greet.delay(context, "a")  # error: call-arg arg-type | reportCallIssue
    visit.delay("a", twice="yes")  # error: arg-type | reportArgumentType


def wrong_call_options() -> None:
    report.options(quue="q")  # error: call-arg | reportCallIssue
    report.options(priority="high")  # error: arg-type | reportArgumentType
    report.options(name="other")  # error: call-arg | reportCallIssue
    report.options(bind=True)  # error: call-arg | reportCallIssue
    report.options(retry_on=OSError)  # error: call-arg | reportCallIssue
    report.options(on_existing="ignore")  # error: arg-type | reportArgumentType
    report.options(headers={"a": 1})  # error: dict-item | reportArgumentType
    report.options(backoff=retry_slowly)  # error: arg-type | reportArgumentType
    report.options(backoff="quadratic")  # error: arg-type | reportArgumentType


def wrong_task_options() -> None:
    app.task(retry_limt=3)  # error: call-overload | reportCallIssue
    app.task(queue=3)  # error: call-overload | reportArgumentType
    app.task(cron=5)  # error: call-overload | reportArgumentType
    app.task(every="5")  # error: call-overload | reportArgumentType
    app.task(every=5, catch_up="some")  # error: call-overload | reportArgumentType
    app.add_recurring("a", report, every=5)  # error: arg-type | reportArgumentType
    app.task(id="one")  # error: call-overload | reportCallIssue
    app.task(bind="yes")  # error: call-overload | reportArgumentType reportCallIssue
    app.task(retry_on="OSError")  # error: arg-type | reportArgumentType
    app.task("add")  # error: call-overload | reportArgumentType reportCallIssue


def unbound(name: str) -> None:
    del name


app.task(bind=True)(unbound)  # error: arg-type | reportArgumentType reportCallIssue
Conveyor("typed", brocker="redis://")
Conveyor(3)  # error: arg-type | reportArgumentType
Conveyor("typed", broker=3)  # error: arg-type | reportArgumentType
