"""The pages: server-rendered, in Chinese and English, usable on a phone."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.templating import Jinja2Templates
from jinja2 import pass_context
from jinja2.runtime import Context

from fleet_server.auth import service as auth
from fleet_server.auth.service import Person
from fleet_server.clock import system_now
from fleet_server.database import Connection
from fleet_server.devices import fleet
from fleet_server.faults.store import OpenFault, open_faults
from fleet_server.ledger import depot
from fleet_server.planning import service as planning
from fleet_server.seed import DEPOT
from fleet_server.web import health, views, words
from fleet_server.web import models as m
from fleet_server.web.api import sign_in_person
from fleet_server.web.context import Now, Parts, SignedIn, Transaction, cookie_name
from fleet_server.web.i18n import LANGUAGES, catalogue

router = APIRouter()
templates = Jinja2Templates(directory=Path(__file__).parent / "templates")
FACTS_PER_PAGE: Final = 30


def language(request: Request) -> str:
    """The reader's language: what was chosen, else what this installation speaks."""
    chosen = request.cookies.get("language", "")
    return chosen if chosen in LANGUAGES else request.app.state.services.settings.language


@pass_context
def _translate(context: Context, text: str) -> str:
    return str(catalogue(context["language"]).gettext(text))


templates.env.globals.update(
    {"_": _translate, "words": words, "languages": LANGUAGES, "gettext_of": lambda lang: catalogue(lang).gettext}
)
templates.env.filters["local_time"] = words.local_time


def page(request: Request, name: str, person: Person | None, status: int = 200, **context: Any) -> Response:
    """Render a template with what every page has."""
    lang = language(request)
    say = catalogue(lang).gettext
    common = {"person": person, "language": lang, "say": say, "suffix": "zh" if lang == "zh" else "en"}
    return templates.TemplateResponse(request, name, common | context, status_code=status)


def error_page(request: Request, status: int, detail: str) -> Response:
    """Say what went wrong in plain words, with a way back; `detail` is for whoever looks after the server."""
    person = getattr(request.state, "person", None)
    return page(request, "error.html", person, status, detail=detail, code=status, back=_page_before(request))


def product_names(request: Request, connection: Connection) -> Callable[[str], str]:
    """Name products by their codes, in the reader's language; a code without a name stays what it is."""
    is_chinese = language(request) == "zh"
    names = {p.code: p.name_zh if is_chinese else p.name_en for p in fleet.list_products(connection)}
    return lambda code: names.get(code, code)


def go(path: str) -> Response:
    """Show another page after a form."""
    return RedirectResponse(path, 303)


def _page_before(request: Request) -> str:
    before = request.headers.get("referer", "/")
    return "/" + before.partition("//")[2].partition("/")[2] if "//" in before else "/"


# ---------------------------------------------------------------- session and language


@router.get("/sign-in")
def sign_in_form(request: Request) -> Response:
    return page(request, "sign_in.html", None)


@router.post("/sign-in")
def sign_in(
    request: Request, parts: Parts, user: Annotated[str, Form()] = "", password: Annotated[str, Form()] = ""
) -> Response:
    address = request.client.host if request.client else "unknown"
    try:
        person = sign_in_person(parts, user[:40], password[:200], address)
    except auth.SignInError as error:
        return page(request, "sign_in.html", None, error.status, failed=error.status)
    response = go("/work-orders" if person.role is auth.Role.RESTOCKER else "/")
    settings = parts.settings
    response.set_cookie(
        cookie_name(settings), person.token, httponly=True, secure=settings.cookie_secure, samesite="strict", path="/"
    )
    return response


@router.post("/sign-out")
def sign_out(person: SignedIn, connection: Transaction, parts: Parts) -> Response:
    auth.end(connection, person, system_now())
    response = go("/sign-in")
    response.delete_cookie(cookie_name(parts.settings), path="/", secure=parts.settings.cookie_secure, httponly=True)
    return response


@router.get("/language/{language}")
def choose_language(language: str, request: Request, parts: Parts) -> Response:
    response = go(_page_before(request))
    if language in LANGUAGES:
        response.set_cookie(
            "language",
            language,
            max_age=365 * 86_400,
            samesite="lax",
            secure=parts.settings.cookie_secure,
            httponly=True,
        )
    return response


# ---------------------------------------------------------------- fleet

SHOWN: Final[dict[str, Callable[[m.DispenserItem], bool]]] = {
    "all": bool,
    "attention": lambda item: bool(item.faults_open or item.slots_empty or item.online is False),
    "offline": lambda item: item.online is not True,
}
SORTED: Final[dict[str, Callable[[m.DispenserItem], Any]]] = {
    "id": lambda item: item.id,
    "stock": lambda item: item.stock / max(1, item.capacity),
    "age": lambda item: -(item.age_s or 0),
}


@router.get("/")
def overview(
    request: Request, person: SignedIn, connection: Transaction, now: Now, show: str = "all", sort: str = "id"
) -> Response:
    every = views.overview(connection, now)
    shown = SHOWN.get(show, SHOWN["all"])
    items = sorted(filter(shown, every), key=SORTED.get(sort, SORTED["id"]))
    return page(request, "overview.html", person, items=items, every=every, show=show, sort=sort, now=now)


@router.get("/dispensers/{dispenser_id}")
def dispenser(
    dispenser_id: str,
    request: Request,
    person: SignedIn,
    connection: Transaction,
    now: Now,
    before_stream: m.StreamNumber | None = None,
    before_seq: m.RowNumber | None = None,
) -> Response:
    before = None if before_stream is None or before_seq is None else (before_stream, before_seq)
    item = views.detail(connection, dispenser_id, now)
    facts = views.facts(connection, dispenser_id, before, FACTS_PER_PAGE)
    product = product_names(request, connection)
    soon = (now + timedelta(days=30)).date()
    more = len(facts) == FACTS_PER_PAGE
    return page(
        request, "dispenser.html", person, item=item, facts=facts, product=product, soon=soon, now=now, more=more
    )


@router.get("/faults")
def faults(request: Request, person: SignedIn, connection: Transaction, now: Now) -> Response:
    by_code: dict[str, list[OpenFault]] = {}
    for fault in open_faults(connection):
        by_code.setdefault(fault.code, []).append(fault)
    kinds = sorted(by_code.items(), key=lambda kind: words.urgency(kind[0]))
    names = {d.id: d for d in fleet.list_dispensers(connection)}
    return page(request, "faults.html", person, kinds=kinds, dispensers=names, now=now)


@router.get("/health")
def health_page(request: Request, person: SignedIn, connection: Transaction, parts: Parts, now: Now) -> Response:
    names = {d.id: d for d in fleet.list_dispensers(connection)}
    return page(request, "health.html", person, health=health.look(connection, parts, now), dispensers=names, now=now)


# ---------------------------------------------------------------- plan


@router.get("/plan")
def plan_page(request: Request, person: SignedIn, connection: Transaction, now: Now) -> Response:
    plans = planning.list_plans(connection, 1)
    names = {d.id: d for d in fleet.list_dispensers(connection)}
    product = product_names(request, connection)
    plan = plans[0] if plans else None
    return page(request, "plan.html", person, plan=plan, dispensers=names, product=product, now=now)


@router.post("/plan")
def make_plan(person: SignedIn, connection: Transaction, now: Now) -> Response:
    planning.make_plan(connection, person.depot_id or DEPOT, now)
    return go("/plan")


@router.post("/plan/{plan_id}/release")
def release_plan(plan_id: str, connection: Transaction, now: Now) -> Response:
    planning.release(connection, plan_id, now)
    return go("/work-orders")


# ---------------------------------------------------------------- depot


@router.get("/depot")
def depot_page(request: Request, person: SignedIn, connection: Transaction, now: Now) -> Response:
    depot_id = person.depot_id or DEPOT
    stock = depot.depot_stock(connection, depot_id)
    near = (now + timedelta(days=180)).date()
    product = product_names(request, connection)
    return page(request, "depot.html", person, depot=depot_id, stock=stock, product=product, near=near)
