"""Import of an open_clip model into a model folder."""

import logging
from pathlib import Path
from typing import Any

from clipa_eqx.replacing import check_apart
from clipa_eqx.tokenizer.loading import load_tokenizer
from conversion.open_clip.files import open_model
from conversion.open_clip.names import open_clip_rules, temperature_shape
from conversion.open_clip.resolving import resolve
from conversion.open_clip.sources import HUB
from conversion.open_clip.vocabulary import own_rules, own_vocabulary
from conversion.weights.choices import GIVE_VOCAB, ImportOptions
from conversion.weights.formats import OPEN_CLIP
from conversion.weights.import_provenance import import_provenance, log_resolved
from conversion.weights.rules import RuleTable
from conversion.weights.tensors import sha256_of
from conversion.weights.write_model import write_model

_log = logging.getLogger(__name__)


def import_open_clip(source: str, options: ImportOptions) -> Path:
    """Convert a model; log every choice with its reason, and record it in the provenance.

    Args:
        source: a weight file, a folder, or ``hf-hub:REPO``.
        options: destination and flags.

    Raises:
        ConversionError: lists all that is missing, unused, mis-shaped, damaged, unsupported or undetermined.
        CheckpointError: the destination exists or is inside the source, or the source is damaged.
    """
    if not source.startswith(HUB):
        check_apart(options.folder, [Path(source)])
    with open_model(source) as opened:
        resolved = resolve(opened, options.choices, where=source)
        log_resolved(resolved)
        rows = resolved.config.text.vocab
        if options.vocab is None:
            tokenizer, origin = own_vocabulary(opened.source.folder, opened.config, rows=rows)
        else:
            tokenizer, origin = load_tokenizer(options.vocab, model_vocab=rows, remedy=GIVE_VOCAB), options.vocab
        about: dict[str, Any] = {
            "dtypes": sorted({str(info.dtype) for info in opened.tensors.tensors.values()}),
            "config_sha256": None if opened.source.config is None else sha256_of(opened.source.config),
        }
        if source.startswith(HUB):
            about["repository"] = source.removeprefix(HUB)
        rules = open_clip_rules(resolved.config, temperature_shape(opened.tensors.tensors))
        converted = write_model(
            opened.tensors,
            RuleTable(rules, resolved.config),
            options.folder,
            tokenizer=tokenizer,
            preprocess=resolved.preprocess,
            provenance=import_provenance(
                resolved,
                tokenizer,
                format=OPEN_CLIP,
                layout=about,
                origin=origin,
                rules=own_rules(opened.source.folder, opened.config, opened.metadata),
            ),
            overwrite=options.overwrite,
        )
    _log.info("%s: %s parameters", converted.folder, f"{converted.provenance.parameters:,}")
    return converted.folder
