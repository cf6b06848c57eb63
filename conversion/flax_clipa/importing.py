"""Import of the reference's checkpoints, of either of its trainers, into a model folder."""

import logging

from clipa_eqx.commands import command_line
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.tokenizer.loading import load_tokenizer
from conversion.flax_clipa.checkpoint import Checkpoint
from conversion.flax_clipa.files import open_flax
from conversion.flax_clipa.names import flax_rules
from conversion.flax_clipa.shapes import flax_facts
from conversion.weights.choices import GIVE_VOCAB, ImportOptions
from conversion.weights.import_provenance import import_provenance, log_resolved
from conversion.weights.infer import resolve_config
from conversion.weights.rules import RuleTable
from conversion.weights.write_model import write_model

_log = logging.getLogger(__name__)


def import_flax(source: str, options: ImportOptions) -> None:
    """Import ``FILE.npz`` or ``FILE.npz:sub/tree``. Raises as ``open_flax`` and ``import_checkpoint``."""
    with open_flax(source) as found:
        import_checkpoint(found.checkpoint(), options)


def import_checkpoint(found: Checkpoint, options: ImportOptions) -> None:
    """Write the model folder; log all choices and their reasons, and record them in the provenance.

    Raises:
        ConversionError: lists everything that is missing, unused, mis-shaped, damaged or not determined by shapes.
        CheckpointError: the destination exists, or must not be replaced.
        ConfigError: the vocabulary has more pieces than the token table has rows.
    """
    tensors = found.params.tensors

    def table(config: CLIPConfig) -> RuleTable:
        return RuleTable(flax_rules(config, found.layout), config)

    resolved = resolve_config(
        flax_facts(tensors),
        options.choices,
        format_profile="flax",
        misfits=lambda config: table(config).check(tensors),
    )
    resolved = resolved._replace(notes=(*resolved.notes, resolved.preprocess_note, *found.notes))
    log_resolved(resolved)
    tokenizer = load_tokenizer(options.vocab, model_vocab=resolved.config.text.vocab, remedy=GIVE_VOCAB)
    converted = write_model(
        found.params,
        table(resolved.config),
        options.folder,
        tokenizer=tokenizer,
        preprocess=resolved.preprocess,
        provenance=import_provenance(
            resolved, tokenizer, format=found.format, layout=found.about, origin=options.vocab
        ),
        moments=found.moments,
        overwrite=options.overwrite,
    )
    _log.info("%s: %s parameters", converted.folder, f"{converted.provenance.parameters:,}")
    if found.moments is not None:
        _log.info(
            "optimizer state of step %d: resume from it with `%s`",
            found.moments.schedule_steps,
            command_line(
                "train", "CONFIG.py", "--workdir", "RUN", "--init-from", converted.folder, "--init.optimizer", "True"
            ),
        )
