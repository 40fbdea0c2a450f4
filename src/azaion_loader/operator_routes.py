"""Routes for people and orchestrators; what devices need of each other stands in `main`."""

import platform
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from azaion_loader import __version__, errors, schemas
from azaion_loader import operator_schemas as answers
from azaion_loader.dependencies import ServicesDep
from azaion_loader.diagnosis import is_healthy
from azaion_loader.http_errors import documented
from azaion_loader.progress_watch import WAIT_MAX_S, token_of

router = APIRouter()

_SEVERAL = documented(errors.InvalidRequest)
_Wait = Annotated[float, Query(ge=0, le=WAIT_MAX_S, description="Seconds to wait for news, at most; needs `since`")]
# What `names.check_folder` takes, for readers of the description; that function alone decides, with its own code.
_FOLDER_PATTERN = (
    r"^(?!.*\.\.)(?!([Gg][Ee][Tt]|[Ll][Ii][Ss][Tt]|[Cc][Hh][Ee][Cc][Kk]|[Cc][Ll][Ee][Aa][Rr]|[Pp][Uu][Bb][Ll][Ii][Ss][Hh])$)"
    r"(?![Gg][Ee][Tt]-)[A-Za-z0-9][A-Za-z0-9._\-]{0,127}$"
)
_Folder = Annotated[str, Path(json_schema_extra={"pattern": _FOLDER_PATTERN}, examples=["models"])]
_Since = Annotated[str | None, Query(max_length=64, description="The `token` of the answer known so far")]


@router.get("/unlock/progress", responses=_SEVERAL)
async def unlock_progress(
    services: ServicesDep, wait: _Wait = 0.0, since: _Since = None
) -> schemas.UnlockProgressAnswer:
    """Tell how far the unlock run has come; with `wait` and `since`, as soon as it has moved on from `since`."""
    figures = await services.operations.watch.wait(since, wait)
    return schemas.UnlockProgressAnswer(**figures.as_json(), token=token_of(figures))


@router.get("/version", responses=documented())
async def version(services: ServicesDep) -> answers.VersionAnswer:
    """Tell which version runs, on what."""
    return answers.VersionAnswer(
        version=__version__,
        python=platform.python_version(),
        machine=platform.machine(),
        key_profile=await services.operations.key_profile(),
    )


@router.get("/diagnostics", responses=documented())
async def diagnostics(services: ServicesDep) -> answers.DiagnosticsAnswer:
    """Look at engine, disk, archive, network, clock and hardware; ends within some 20 seconds whatever hangs."""
    report = await services.operations.diagnose()
    return answers.DiagnosticsAnswer(
        healthy=is_healthy(report.findings),
        checks=[answers.FindingAnswer.model_validate(finding) for finding in report.findings],
        hardware=[answers.HardwarePartAnswer.model_validate(part) for part in report.parts],
    )


@router.get("/resources/{folder}", responses=documented(errors.InvalidName))
async def resources(folder: _Folder, services: ServicesDep) -> answers.ListingAnswer:
    """List a folder's models: what is cached here, and what the Resource API has."""
    return answers.ListingAnswer.model_validate(await services.operations.list_folder(folder))


@router.get(
    "/metrics",
    response_class=Response,
    responses={**documented(answers_json=False), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(services: ServicesDep) -> Response:
    """Counters and states in Prometheus' text format."""
    return Response(await services.operations.metrics_page(), media_type="text/plain; version=1.0.0; charset=utf-8")
