"""The pages."""

from fastapi import APIRouter, Request, Response

router = APIRouter()


def error_page(_request: Request, status: int, detail: str) -> Response:
    return Response(detail, status)
