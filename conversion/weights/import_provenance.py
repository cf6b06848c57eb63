"""Log lines and provenance on how an import found the config and the vocabulary of a model."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipa_eqx.saved.provenance import Provenance, Vocabulary
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from conversion.weights.formats import Format, TextRules
from conversion.weights.infer import Resolved
from conversion.weights.numerics import numerics_of

_log = logging.getLogger(__name__)


def log_resolved(resolved: Resolved) -> None:
    """Log what was chosen and what differs."""
    for note in resolved.notes:
        _log.info("%s", note)
    _log.info("numerics profile %s: %s", resolved.profile, resolved.profile_why)
    if resolved.prompt_reduction is not None:
        _log.info("texts that are too long: %s, as the released model was scored", resolved.prompt_reduction)


def import_provenance(
    resolved: Resolved,
    tokenizer: Tokenizer,
    *,
    format: Format,
    layout: Mapping[str, Any],
    origin: Path | str | None,
    rules: TextRules = "reference",
) -> Provenance:
    """The part of the provenance that an importer knows before the conversion.

    Args:
        format: name of the source's format.
        layout: JSON of the format: what an export needs to write the same file again.
        origin: where the vocabulary comes from: the path given with ``--vocab``, or words; None for BERT's.
        rules: how the source splits texts.
    """
    where = f"--vocab {origin.name}" if isinstance(origin, Path) else origin or "BERT's, as --vocab names no other"
    sha256, pieces = tokenizer.vocab_sha256, tokenizer.vocab_size
    numerics = numerics_of(resolved.config).to_json()
    return Provenance(
        format=format,
        layout=layout,
        profile={"name": resolved.profile, "why": resolved.profile_why, **numerics},
        config_notes=tuple(resolved.notes),
        vocabulary=Vocabulary(sha256=sha256, pieces=pieces, origin=where, rules=rules),
        prompt_reduction=resolved.prompt_reduction,
    )
