"""Chinese first, English second: catalogues are compiled in memory from their .po files."""

import io
from functools import cache
from pathlib import Path
from typing import Final

from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.support import Translations

LANGUAGES: Final = {"zh": "中文", "en": "English"}
FOLDER: Final = Path(__file__).parent / "translations"


@cache
def catalogue(language: str) -> Translations:
    """Return the translations of one language."""
    with (FOLDER / f"{language}.po").open("rb") as file:
        catalog = read_po(file, locale=language)
    compiled = io.BytesIO()
    write_mo(compiled, catalog)
    compiled.seek(0)
    return Translations(compiled)
