"""The pages for a browser: the operator's at `/` and the interactive description at `/docs`; both work offline.

Their assets are files of this package and of the package that carries Swagger UI. Neither page may run or load
anything else: the policy in their headers says so.
"""

import importlib.util
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from azaion_loader.errors import RouteNotFound

router = APIRouter(include_in_schema=False)

_OWN = Path(__file__).parent / "static"
_SWAGGER_PACKAGE = "fastapi_offline"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_ASSETS = frozenset({"app.css", "app.js", "docs.js", "icon.svg"})
_SWAGGER_ASSETS = frozenset({"swagger-ui.css", "swagger-ui-bundle.js"})
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'{images}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@router.get("/")
async def operator_page() -> Response:
    """Show the operator's page."""
    return await _file(_OWN / "index.html", _POLICY.format(images=""))


@router.get("/docs")
async def description() -> Response:
    """Show the interactive description of the service."""
    # The style sheet of Swagger UI holds its icons as data.
    return await _file(_OWN / "docs.html", _POLICY.format(images=" data:"))


@router.get("/static/{name}")
async def asset(name: str, _request: Request) -> Response:
    """Send a file of one of the pages."""
    if name in _ASSETS:
        return await _file(_OWN / name)
    if name in _SWAGGER_ASSETS:
        return await _file(_swagger_directory() / name)
    raise RouteNotFound("There is no such file.")


async def _file(path: Path, policy: str = "default-src 'none'") -> Response:
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        # A new version of the service must not meet an old script.
        "Cache-Control": "no-cache",
    }
    content = await run_in_threadpool(path.read_bytes)
    return Response(content, headers=headers, media_type=_TYPES[path.suffix])


def _swagger_directory() -> Path:
    """Return where the package keeps its files, without importing it."""
    found = importlib.util.find_spec(_SWAGGER_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise RouteNotFound("This installation has no Swagger UI; /openapi.json describes the service.")
    return Path(found.submodule_search_locations[0]) / "static"
