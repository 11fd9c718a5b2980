"""Statements of the publisher about a model: title, licence, contact, intended use."""

from __future__ import annotations

import re
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Statements:
    """Facts that only the publisher knows; all are optional, and the card states which are missing."""

    title: str | None = None
    category: str | None = None  # of the forgotten rows, such as "personal data of 12 people"; never the text
    contact: str | None = None
    license: str | None = None
    license_name: str | None = None  # for license "other": a licence that the Hub does not list
    license_link: str | None = None
    base_model: str | None = None  # Hub id, if training loaded it from a folder
    datasets: tuple[str, ...] = ()
    intended_use: str | None = None
    power_watts: float | None = None  # drawn by the whole machine during training

    def checked(self) -> Statements:
        """Return the statements after checking them.

        Raises:
            PublishError: a base model or data set is no Hub id, the Hub does not know the licence, or the power is not
                positive.
        """
        if self.base_model is not None and not REPOSITORY.fullmatch(self.base_model):
            raise PublishError(f"base_model is '{plain(self.base_model)}'; give its name on the Hub, as org/name")
        if wrong := [name for name in self.datasets if not REPOSITORY.fullmatch(name)]:
            raise PublishError(f"dataset is '{plain(wrong[0])}'; give its name on the Hub, as org/name")
        self._check_licence()
        if self.power_watts is not None and not 0 < self.power_watts < 1e7:
            raise PublishError(f"power_watts is {self.power_watts}; give what the machine draws, in watts, above 0")
        return self

    def _check_licence(self) -> None:
        has_custom_name = self.license_name is not None or self.license_link is not None
        if self.license is not None and self.license not in LICENCES:
            close = get_close_matches(self.license.lower(), sorted(LICENCES)) or ["apache-2.0", "mit", "cc-by-4.0"]
            raise PublishError(
                f"license is '{plain(self.license)}', which the Hub does not know; it knows {', '.join(close)} and "
                f"others; for any other licence set {OTHER} with license_name"
            )
        if (has_custom_name and self.license != OTHER) or (self.license == OTHER and not self.license_name):
            raise PublishError(f"license_name and license_link belong to license {OTHER}, which needs license_name")
        if self.license_name is not None and not NAME.fullmatch(self.license_name):
            raise PublishError(f"license_name is '{plain(self.license_name)}'; write it in small letters and hyphens")
        if self.license_link is not None and not LINK.fullmatch(self.license_link):
            raise PublishError(f"license_link is '{plain(self.license_link)}'; set a URL that begins with https://")


def saved_statements(run: Path) -> Statements:
    """Read the statements that `write_card` saved in a run; empty without any.

    Raises:
        PublishError: the file was not written by `write_card`.
    """
    file = run / STATEMENTS
    if not file.is_file():
        return Statements()
    content = formats.read(file, CardStatements, advice="delete it and make the card again")
    return Statements(**{**formats.plain(content), "datasets": tuple(content.datasets)})
