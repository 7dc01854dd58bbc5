"""The one file of wiring: a process with its roles. Nobody imports it but the command line and tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from fleet_server.database import Database
from fleet_server.ingest.broker import parse_address
from fleet_server.ingest.service import IngestService
from fleet_server.jobs.clockwork import clock_of
from fleet_server.jobs.schedule import Scheduler, jobs_of
from fleet_server.jobs.work import Kept
from fleet_server.settings import Settings
from fleet_server.web import api, pages, problems, recovery_api, shell, visit_pages
from fleet_server.web.context import Services


def create_app(settings: Settings) -> FastAPI:
    """Put a process together; nothing connects before it starts."""
    database = Database(settings.database_url)
    clock = clock_of(database)
    kept = Kept(timedelta(days=settings.vitals_kept_days), timedelta(days=settings.dead_letters_kept_days))
    jobs = jobs_of(kept)
    parts = Services(settings, database, clock, jobs)
    ingest: IngestService | None = None
    if "ingest" in settings.roles:
        ca_file = str(settings.broker_ca_file) if settings.broker_ca_file else None
        password = settings.broker_password()
        address = parse_address(settings.broker_url, settings.broker_username, password, ca_file)
        parts.ingest = ingest = IngestService(
            database, clock, address, lambda: clock.state().mode == "played", settings.broker_share
        )
    scheduler = Scheduler(database, clock, jobs) if "jobs" in settings.roles else None

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        if ingest is not None:
            ingest.start()
        if scheduler is not None:
            scheduler.start()
        yield
        if scheduler is not None:
            scheduler.stop()
        if ingest is not None:
            ingest.stop()
        database.close()

    app = FastAPI(
        title="Dispenser Fleet",
        version="1",
        description="Fleet management for unattended, free contraceptive dispensers.",
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        dependencies=shell.EVERY_ROUTE,
    )
    app.state.services = parts
    problems.install(app)
    shell.install(app, settings)
    app.include_router(shell.health)
    if "web" in settings.roles:
        app.include_router(api.router)
        app.include_router(recovery_api.router)
        app.include_router(pages.router, include_in_schema=False)
        app.include_router(visit_pages.router, include_in_schema=False)
        app.mount("/static", StaticFiles(directory=Path(pages.__file__).parent / "static"), name="static")
    return app
