"""The command line that all importers share."""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipa_eqx.errors import ConversionError

if TYPE_CHECKING:
    from clipa_eqx.saved.provenance import Provenance
    from clipa_eqx.tokenizer import Tokenizer
    from conversion.weights.infer import Choices, Resolved
    from conversion.weights.numerics import Rules

_log = logging.getLogger(__name__)

EPILOG = """What names and shapes do not tell (pooling, computed positions and the image size that goes with them, heads
of flat attention) comes from --preset, --released or --config, or from the flag that names it; it is never guessed.
Every difference between the file and the named config is printed. Exit codes: 0 done, 2 a mistake in file, folder or
flags, 1 anything else, 130 and 143 after Ctrl-C and SIGTERM, which leave nothing half-written."""

TERMINATED = "terminated; nothing was written"


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of an import, which are the same for every format."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="the model folder to write")
    add_config_arguments(parser)
    parser.add_argument("--vocab", metavar="F", type=Path, help="vocabulary file or tokenizer folder; else BERT's")
    parser.add_argument("--overwrite", action="store_true", help="replace the model that DIR holds, once this is done")


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """What tells of a model that its file does not."""
    whole = parser.add_mutually_exclusive_group()
    whole.add_argument("--preset", metavar="N", help="an architecture: L/14, H/14, bigG/14, ...")
    whole.add_argument("--released", metavar="N", help="a released model; `python -m conversion.released` lists them")
    whole.add_argument("--config", metavar="F.json", type=Path, help="a model config as scripts/show.py prints it")
    parser.add_argument("--image-pool", choices=("gap", "tok", "first", "map"))
    parser.add_argument("--text-pool", choices=("last", "tok", "gap"))
    parser.add_argument("--image-position", choices=("sincos2d", "learned"))
    parser.add_argument("--image-heads", metavar="N", type=int)
    parser.add_argument("--text-heads", metavar="N", type=int)
    parser.add_argument("--image-size", metavar="N", type=int, help="pixels per side")
    parser.add_argument("--profile", choices=("flax", "open_clip"), help="norm epsilon and kind of GELU")


def choices_of(arguments: argparse.Namespace) -> "Choices":
    """What the flags say of the model."""
    from conversion.weights.infer import Choices

    names = ("preset", "released", "config", "image_pool", "text_pool", "image_position", "image_heads", "text_heads")
    return Choices(**{name: getattr(arguments, name) for name in (*names, "image_size", "profile")})


def tokenizer_of(vocab: Path | None, *, rows: int) -> "Tokenizer":
    """The tokenizer of ``--vocab``, or BERT's.

    Raises:
        ConversionError: it has more pieces than the model's token table has rows.
        DataError: there is no such file or folder, or it is no vocabulary.
    """
    from clipa_eqx.tokenizer import Tokenizer

    if vocab is None:
        tokenizer = Tokenizer.bert()
    else:
        tokenizer = Tokenizer.load(vocab) if vocab.is_dir() else Tokenizer.from_file(vocab)
    if tokenizer.vocab_size > rows:
        raise ConversionError(
            f"the token table has {rows} rows, the vocabulary ({vocab or 'BERT, which is shipped'}) "
            f"{tokenizer.vocab_size} pieces; give the model's own with --vocab"
        )
    return tokenizer


def show_resolved(resolved: "Resolved") -> None:
    """Log what was chosen and what differs."""
    for note in resolved.notes:
        _log.info("%s", note)
    _log.info("numerics profile %s: %s", resolved.profile, resolved.profile_why)


def import_provenance(
    resolved: "Resolved",
    tokenizer: "Tokenizer",
    *,
    format: str,
    layout: Mapping[str, Any],
    origin: Path | str | None,
    rules: "Rules" = "reference",
) -> "Provenance":
    """The part of the provenance that an importer knows before it converts.

    Args:
        format: name of the source's format.
        layout: JSON of the format.
        origin: ``--vocab``, or in words where the vocabulary comes from.
        rules: how the source splits texts.
    """
    from clipa_eqx.saved.provenance import Provenance, Vocabulary
    from conversion.weights.numerics import numerics_of

    where = f"--vocab {origin.name}" if isinstance(origin, Path) else origin or "BERT's, as --vocab names no other"
    sha256, pieces = tokenizer.vocab_sha256, tokenizer.vocab_size
    return Provenance(
        format=format,
        layout=layout,
        profile={"name": resolved.profile, "why": resolved.profile_why, **numerics_of(resolved.config)},
        config_notes=tuple(resolved.notes),
        vocabulary=Vocabulary(sha256=sha256, pieces=pieces, origin=where, rules=rules),
    )
