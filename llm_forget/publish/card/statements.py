"""Check and read the publisher's statements about a model: title, licence, contact, intended use."""

import re
from difflib import get_close_matches
from pathlib import Path

from llm_forget.core import formats
from llm_forget.core.errors import PublishError
from llm_forget.core.formats.publication import CardStatements
from llm_forget.core.text import plain
from llm_forget.publish.card.licences import LICENCES, OTHER

CARD, STATEMENTS = "README.md", "card.json"
NAME, LINK = re.compile(r"[a-z0-9][a-z0-9.-]{0,95}"), re.compile(r"https://[!-~]{1,500}")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def checked(statements: CardStatements) -> CardStatements:
    """Return the statements unchanged. Raise PublishError if a Hub id, the licence or the power is invalid."""
    if statements.base_model is not None and not REPOSITORY.fullmatch(statements.base_model):
        raise PublishError(f"base_model is '{plain(statements.base_model)}'; give its name on the Hub, as org/name")
    if wrong := [name for name in statements.datasets if not REPOSITORY.fullmatch(name)]:
        raise PublishError(f"dataset is '{plain(wrong[0])}'; give its name on the Hub, as org/name")
    _check_licence(statements)
    if statements.power_watts is not None and not 0 < statements.power_watts < 1e7:
        raise PublishError(f"power_watts is {statements.power_watts}; give what the machine draws, in watts, above 0")
    return statements


def _check_licence(statements: CardStatements) -> None:
    licence, name, link = statements.license, statements.license_name, statements.license_link
    if licence is not None and licence not in LICENCES:
        close = get_close_matches(licence.lower(), sorted(LICENCES)) or ["apache-2.0", "mit", "cc-by-4.0"]
        raise PublishError(
            f"license is '{plain(licence)}', which the Hub does not know; it knows {', '.join(close)} and others; for "
            f"any other licence set {OTHER} with license_name"
        )
    if (licence != OTHER and (name is not None or link is not None)) or (licence == OTHER and not name):
        raise PublishError(f"license_name and license_link belong to license {OTHER}, which needs license_name")
    if name is not None and not NAME.fullmatch(name):
        raise PublishError(f"license_name is '{plain(name)}'; write it in small letters and hyphens")
    if link is not None and not LINK.fullmatch(link):
        raise PublishError(f"license_link is '{plain(link)}'; set a URL that begins with https://")


def saved_statements(run: Path) -> CardStatements:
    """Return the statements that `write_card` saved in a run, or empty statements if none were saved."""
    file, advice = run / STATEMENTS, "delete it and make the card again"
    return formats.read(file, CardStatements, advice=advice) if file.is_file() else CardStatements()
