"""The REST interface: FastAPI over the use cases, documented by OpenAPI at /openapi.json and /docs."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from architect.control.plane import ControlPlane
from architect.errors import ArchitectError, NotFoundError, UsageError
from architect.rest.answers import failure, on_defect, on_error
from architect.rest.fabric_routes import fabric_routes
from architect.rest.vm_routes import vm_routes
from architect.version import VERSION


def rest_app(plane: ControlPlane) -> FastAPI:
    """The application that serves one control plane."""
    app = FastAPI(title="Architect", version=VERSION, description="A failure-proof compute fabric: VMs that move live.")
    app.include_router(vm_routes(plane))
    app.include_router(fabric_routes(plane.fabric))
    app.add_exception_handler(ArchitectError, on_error)
    app.add_exception_handler(RequestValidationError, _on_bad_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, on_defect)
    return app


async def _on_bad_request(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0] if error.errors() else {"loc": ("body",), "msg": "is not valid"}
    where = " ".join(str(part) for part in first["loc"])
    return failure(UsageError(f"request, {where}", str(first["msg"]), "see /openapi.json for what is expected"))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return failure(NotFoundError(f"path {request.url.path}", "does not exist", "see /openapi.json for those that do"))
    answer = failure(UsageError(f"{request.method} {request.url.path}", str(error.detail), "see /openapi.json"))
    answer.status_code = error.status_code
    return answer
