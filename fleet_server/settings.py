"""What an installation is told: environment variables DISPENSER_FLEET_*, or a TOML file. Nothing is read at import."""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from fleet_server.errors import InputError

DATABASE_URL = r"postgres(ql)?://([^/@]*@)?(\[[^\]]*\]|[^/@:]*)(:\d+)?/.+"
Role = Literal["web", "ingest", "jobs"]


class Settings(BaseSettings):
    """One server process."""

    model_config = SettingsConfigDict(env_prefix="DISPENSER_FLEET_", extra="forbid", toml_file=None)

    database_url: str = Field(description="postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    # The owner of the tables, for `dispenser-fleet migrate`; without it, the user of database_url.
    migration_url: str | None = None
    broker_url: str = "mqtt://127.0.0.1:1883"
    broker_username: str | None = None
    broker_password_file: Path | None = None
    broker_ca_file: Path | None = None
    broker_share: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="name of the group of ingest workers among whom the broker deals out messages ($share/NAME/...)",
    )
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=1, le=65_535)
    roles: tuple[Role, ...] = ("web", "ingest", "jobs")
    production: bool = True
    cookie_secure: bool = True
    vitals_kept_days: int = Field(default=90, ge=2, le=3_650)
    dead_letters_kept_days: int = Field(default=90, ge=2, le=3_650)
    language: Literal["zh", "en"] = "zh"

    @field_validator("database_url", "migration_url")
    @classmethod
    def names_a_database(cls, url: str | None) -> str | None:
        """Refuse what can be no address of a PostgreSQL."""
        if url is not None and not re.fullmatch(DATABASE_URL, url):
            raise ValueError("postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
        return url

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given in code wins, then the environment, then the file."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    def broker_password(self) -> str | None:
        """Read the broker's password from its file."""
        if self.broker_password_file is None:
            return None
        try:
            return self.broker_password_file.read_text().strip()
        except OSError as error:
            raise InputError(
                "broker_password_file", str(self.broker_password_file), f"a readable file ({error.strerror})"
            ) from None


def load(config: Path | None = None, **given: Any) -> Settings:
    """Load the settings; raises InputError naming field, value and expectation."""
    if config is not None and not config.is_file():
        raise InputError("config", str(config), "a readable TOML file")

    class Loaded(Settings):
        model_config = SettingsConfigDict(env_prefix="DISPENSER_FLEET_", extra="forbid", toml_file=config)

    try:
        return Loaded(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        secret = "password" in field or "url" in field
        value = None if first["type"] == "missing" else ("(not shown)" if secret else first.get("input"))
        raise InputError(field, value, _expected(field, first["type"], first["msg"])) from None
    except ValueError as error:  # TOML that is none
        raise InputError("config", str(config), f"valid TOML ({error})") from None


def _expected(field: str, kind: str, message: str) -> str:
    """What pydantic says, as what was expected."""
    if kind == "missing":
        return f"a value: set DISPENSER_FLEET_{field.upper()}, or name it in the file given with --config"
    text = message.removeprefix("Value error, ").removeprefix("Input should be ")
    return text[0].lower() + text[1:]
