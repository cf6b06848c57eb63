"""From a checkpoint of the reference, whichever of its trainers wrote it, to a model folder."""

import argparse
import logging

from conversion.flax_clipa.checkpoint import Checkpoint
from conversion.flax_clipa.names import flax_rules
from conversion.flax_clipa.shapes import flax_facts
from conversion.weights.arguments import choices_of, import_provenance, show_resolved, tokenizer_of
from conversion.weights.infer import resolve_config
from conversion.weights.rules import check_tensors
from conversion.weights.write_model import write_model

_log = logging.getLogger(__name__)


def import_checkpoint(found: Checkpoint, arguments: argparse.Namespace) -> None:
    """Convert; what was chosen and why is logged and recorded in the provenance.

    Raises:
        ConversionError: lists all that is missing, unused, mis-shaped, damaged, or cannot be told from shapes.
        CheckpointError: the destination exists, or must not be replaced.
    """
    tensors = found.params.tensors
    resolved = resolve_config(
        flax_facts(tensors),
        choices_of(arguments),
        format_profile="flax",
        misfits=lambda config: check_tensors(flax_rules(config, found.layout), config, tensors),
    )
    resolved = resolved._replace(notes=(*resolved.notes, resolved.preprocess_note, *found.notes))
    show_resolved(resolved)
    tokenizer = tokenizer_of(arguments.vocab, rows=resolved.config.text.vocab)
    converted = write_model(
        found.params,
        flax_rules(resolved.config, found.layout),
        resolved.config,
        arguments.folder,
        tokenizer=tokenizer,
        preprocess=resolved.preprocess,
        provenance=import_provenance(
            resolved, tokenizer, format=found.format, layout=found.about, origin=arguments.vocab
        ),
        moments=found.moments,
        overwrite=arguments.overwrite,
    )
    _log.info("%s: %s parameters", converted.folder, f"{converted.provenance.parameters:,}")
    if found.moments is not None:
        _log.info(
            "optimizer state of step %d: train.py --init-from %s --init.optimizer True goes on from there",
            found.moments.schedule_steps,
            converted.folder,
        )
