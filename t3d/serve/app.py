"""The interface: what is asked where, and every error in the same shape."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, Response

from t3d.errors import RequestError, WorkError
from t3d.serve.bodies import LingeringError, read_body
from t3d.serve.clients import Gate
from t3d.serve.counting import CLIENT_LEFT, Counting, outcome_of
from t3d.serve.errors import ApiError, UnreadBody, api_error_of
from t3d.serve.protocol import ChatRequest, CompletionRequest, parse
from t3d.serve.responses import ModelCard, ModelList
from t3d.serve.sending import StreamResponse, WholeResponse
from t3d.serve.service import Service
from t3d.serve.settings import Settings
from t3d.serve.shapes import model_card
from t3d.web import page

PAGE_HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",  # the rest is in the page itself
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def make_app(service: Service, settings: Settings) -> FastAPI:
    """The app of a service.

    Args:
        service: not shared with another app.
        settings: limits.
    """
    app = FastAPI(title="t3d", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    gate = Gate(settings)

    def guard(request: Request) -> None:
        gate.check(request, counts=request.method == "POST")

    app.include_router(_open_routes(service))
    app.include_router(_routes(service, settings), dependencies=[Depends(guard)])
    app.add_middleware(Counting, metrics=service.metrics)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("Retry-After",),
        )
    _add_error_handlers(app)
    return app


def _open_routes(service: Service) -> APIRouter:
    """What needs no key."""
    router = APIRouter()
    text = page("playground")

    @router.get("/health")
    async def health() -> Response:
        status = "ok" if service.is_healthy else "shutting down" if service.is_ending else "an engine has failed"
        return JSONResponse({"status": status, "models": list(service.models)}, 200 if service.is_healthy else 503)

    @router.get("/")
    async def playground() -> Response:
        return HTMLResponse(text, headers=PAGE_HEADERS)

    return router


def _routes(service: Service, settings: Settings) -> APIRouter:
    """What does."""
    router = APIRouter()

    @router.get("/v1/models")
    async def models() -> Response:
        cards = [model_card(model) for model in service.models.values()]
        return JSONResponse(ModelList(object="list", data=cards))

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        card: ModelCard = model_card(service.find(name))
        return JSONResponse(card)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, CompletionRequest)

    @router.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(request, ChatRequest)

    async def answer(request: Request, kind: type[CompletionRequest] | type[ChatRequest]) -> Response:
        body = await read_body(request, settings.max_body_bytes, settings.read_timeout)
        asked = parse(kind, body)
        outcome = outcome_of(request)
        outcome.model = service.find(asked.model).name
        job = await service.job_for(asked)
        return (StreamResponse if asked.stream else WholeResponse)(service, job, outcome)

    return router


def _add_error_handlers(app: FastAPI) -> None:
    async def on_failure(request: Request, failure: Exception) -> Response:
        error = api_error_of(failure)
        if isinstance(error, UnreadBody):
            return LingeringError(error)
        return JSONResponse(error.body(), error.status, error.headers)

    async def on_http_error(request: Request, failure: Any) -> Response:
        path = repr(request.scope["path"][:100])[1:-1]  # of one line; `request.url` trusts the Host header
        told = {
            404: f"there is nothing at {path}: the interface is at /v1",
            405: f"{request.method} is not for {path}",
        }
        message = told.get(failure.status_code, failure.detail)
        return await on_failure(request, ApiError(failure.status_code, message, headers=failure.headers))

    async def on_departure(request: Request, failure: Exception) -> Response:
        return Response(status_code=CLIENT_LEFT)  # which nobody reads

    for kind in (ApiError, RequestError, WorkError):
        app.add_exception_handler(kind, on_failure)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(ClientDisconnect, on_departure)
