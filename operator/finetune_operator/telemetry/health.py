"""The HTTP server that Kubernetes and Prometheus ask: `/livez`, `/readyz` and `/metrics`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

Check = Callable[[], str | None]
"""Returns what is wrong, in words; None when nothing is."""


async def serve(port: int, *, live: Check, ready: Check) -> web.AppRunner:
    """Starts the server on all addresses of this port; cleaning the runner up ends it.

    `/livez` and `/readyz` answer 503 with what their check returns, or 200.
    """
    application = web.Application()
    application.add_routes(
        [
            web.get("/livez", _answering(live)),
            web.get("/readyz", _answering(ready)),
            web.get("/metrics", _metrics),
        ]
    )
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner


def _answering(check: Check) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        wrong = check()
        return web.Response(text=wrong or "ok", status=503 if wrong else 200)

    return answer


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
