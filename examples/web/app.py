"""The tasks of the web example; `conveyor -A app worker` runs them."""

from __future__ import annotations

import asyncio

from conveyor import Context, Conveyor

app = Conveyor("web")


@app.task(bind=True, error_retry_limit=2)
async def write_report(ctx: Context, title: str, pages: int) -> str:
    for page in range(1, pages + 1):
        await asyncio.sleep(0.05)
        await ctx.aupdate_progress(page / pages)
    return f"{title}, {pages} pages"
