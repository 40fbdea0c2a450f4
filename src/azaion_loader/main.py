"""The HTTP service: routes of two or three statements over the use cases.

`uvicorn azaion_loader.main:app` serves the application with the settings of the environment.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.telemetry import TelemetryConfig
from starlette.concurrency import run_in_threadpool

from azaion_loader import __version__, operator_routes, pages, schemas
from azaion_loader.dependencies import Services, ServicesDep
from azaion_loader.http_errors import LOAD_ERRORS, LOGIN_ERRORS, UNLOCK_ERRORS, UPLOAD_ERRORS, documented, handle_errors
from azaion_loader.logs import set_up_logs
from azaion_loader.middleware import Guard
from azaion_loader.resource_stream import ResourceResponse
from azaion_loader.settings import Settings
from azaion_loader.uploads import FORM_SCHEMA

router = APIRouter()


@router.get("/health", responses=documented())
async def health() -> schemas.HealthAnswer:
    """Tell that the service runs; touches neither network, disk nor Docker."""
    return schemas.HealthAnswer()


@router.get("/status", responses=documented())
async def status(services: ServicesDep) -> schemas.StatusAnswer:
    """Tell whether a session is open and where models are cached."""
    return schemas.StatusAnswer(authenticated=services.authenticated, modelCacheDir=services.settings.model_cache_dir)


@router.post("/login", responses=documented(*LOGIN_ERRORS))
def login(request: schemas.CredentialsRequest, services: ServicesDep) -> schemas.OkAnswer:
    """Open a session at the Resource API; a failed log-in leaves the earlier one as it was."""
    services.sessions.log_in(request.credentials())
    return schemas.OkAnswer()


# The status is named because the framework can't read it from a response class of ours.
@router.post(
    "/load/{filename}",
    status_code=200,
    response_class=ResourceResponse,
    responses=documented(*LOAD_ERRORS, answers_json=False),
)
async def load(filename: str, request: schemas.LoadRequest, services: ServicesDep) -> ResourceResponse:
    """Send a model, decrypted and proved whole."""
    request.check(filename)
    return ResourceResponse(await services.loads.load(request.folder, filename), services.sending)


@router.post("/upload/{filename}", responses=documented(*UPLOAD_ERRORS), openapi_extra=FORM_SCHEMA)
async def upload(filename: str, request: Request, services: ServicesDep) -> schemas.OkAnswer:
    """Publish a model; answers when both of its parts are stored."""
    await services.uploads.receive(filename, request)
    return schemas.OkAnswer()


@router.post("/unlock", responses=documented(*UNLOCK_ERRORS))
def unlock(
    request: schemas.CredentialsRequest,
    services: ServicesDep,
    refresh: Annotated[bool, Query(description="Compare the engine's images with the archive, not only names")] = False,
) -> schemas.UnlockStateAnswer:
    """Start the unlock run, unless there is nothing to do or one is in progress; poll `/unlock/status` for its end."""
    return schemas.UnlockStateAnswer(state=services.unlock_job.start(request.credentials(), refresh))


@router.get("/unlock/status", responses=documented())
async def unlock_status(services: ServicesDep) -> schemas.UnlockStatusAnswer:
    """Tell where the unlock run stands."""
    return schemas.UnlockStatusAnswer.model_validate(await services.poll(lambda job: job.status()))


def create_app(settings: Settings | None = None, services: Services | None = None) -> FastAPI:
    """Build the application; `services` in place of those that `settings` (default: the environment) lead to.

    Raises InvalidSetting if a setting can't be used.
    """
    services = services or Services(settings or Settings.from_environment())

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        set_up_logs(services.settings.log_dir)
        services.start()
        yield
        await run_in_threadpool(services.close)

    # The framework's own telemetry would hand exceptions and their messages to whatever exporter the environment names.
    silent = TelemetryConfig(tracing=False, metrics=False, logs=False, operation_spans=False, auto_configure=False)
    app = FastAPI(
        title="Azaion.Loader",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        telemetry=silent,
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    app.add_middleware(Guard, allowed_hosts=services.settings.allowed_hosts, api_token=services.api_token)
    handle_errors(app)
    for routes in (router, operator_routes.router, pages.router):
        app.include_router(routes)
    return app


def __getattr__(name: str) -> Any:
    """Build `app` when a server asks for it, so that importing this module reads no environment."""
    if name != "app":
        raise AttributeError(name)
    globals()["app"] = create_app()
    return globals()["app"]
