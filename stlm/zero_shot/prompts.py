"""What normal and anomalous look like, in words: one editable TOML or JSON file per product."""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

from stlm.errors import ConfigError
from stlm.strict_json import from_json

__all__ = ["DEFAULT_PROMPTS", "PromptSet", "load_prompts"]

DEFAULT_PROMPTS = Path(__file__).with_name("default_prompts.toml")
"""Prompts for any product; also the pattern for files of one's own."""
_HOLE = "{}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSet:
    """States of a product, and templates around them; each holds ``{}`` exactly once."""

    object: str
    """What the product is, in words that a photograph's caption would use."""
    templates: tuple[str, ...]
    normal: tuple[str, ...]
    anomalous: dict[str, tuple[str, ...]]
    """Class -> its states."""

    def __post_init__(self) -> None:
        if not self.object.strip():
            raise ValueError("object is empty, expected what the product is, such as 'bottle'")
        if not self.anomalous:
            raise ValueError("anomalous has no class, expected at least one, such as damage = ['damaged {}']")
        lists = {"templates": self.templates, "normal": self.normal}
        lists |= {f"anomalous.{name}": states for name, states in self.anomalous.items()}
        for name, texts in lists.items():
            if not texts:
                raise ValueError(f"{name} is empty, expected at least one text")
            for index, text in enumerate(texts):
                if text.count(_HOLE) != 1 or text.replace(_HOLE, "").count("{") + text.replace(_HOLE, "").count("}"):
                    raise ValueError(f"{name}[{index}]: expected exactly one {_HOLE} and no other brace, got {text!r}")

    def texts(self, states: tuple[str, ...]) -> tuple[str, ...]:
        """Every state in every template, with the product's name in it."""
        return tuple(
            template.replace(_HOLE, state.replace(_HOLE, self.object))
            for template in self.templates
            for state in states
        )


def load_prompts(path: Path = DEFAULT_PROMPTS) -> PromptSet:
    """Read a prompt file.

    Args:
        path: ``.toml`` or ``.json``.

    Returns:
        The checked prompts.

    Raises:
        ConfigError: The file is missing, of another type or damaged, or a field does not fit; the message says where,
            what was expected and what was found.
    """
    readers = {".toml": tomllib.loads, ".json": json.loads}
    if path.suffix not in readers:
        raise ConfigError(f"prompt file {path}: expected a .toml or .json file")
    try:
        return from_json(PromptSet, readers[path.suffix](path.read_text(encoding="utf-8")), where=path.name)
    except FileNotFoundError:
        raise ConfigError(f"prompt file {path} does not exist") from None
    except (OSError, ValueError) as error:  # TOML, JSON and Unicode errors are ValueErrors
        raise ConfigError(f"prompt file {path}: {error}") from error
