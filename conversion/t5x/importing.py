"""Import of a checkpoint of the t5x branch into a model folder."""

from pathlib import Path

from conversion.flax_clipa.checkpoint import Checkpoint
from conversion.flax_clipa.importing import import_checkpoint
from conversion.flax_clipa.shapes import layout_of
from conversion.t5x.checkpoint import split_checkpoint
from conversion.t5x.folder import T5xFolder
from conversion.weights.choices import ImportOptions
from conversion.weights.formats import T5X
from conversion.weights.moments import Moments

DECAY_NOTE = (
    "weight decay: the t5x trainer also decays the token table and the class token, optim.decay does not by default; "
    "to resume with its optimizer, set optim.decay to clipa_eqx.optim.T5X_DECAY"
)
"""Warning: with the default decay a resumed run has another optimizer (docs/reference.md F3.2, F6.2)."""


def import_t5x(source: Path, options: ImportOptions, *, with_optimizer: bool) -> None:
    """Import a ``checkpoint_STEP`` folder, with or without its optimizer state.

    Raises:
        ConversionError: lists everything that is missing, unused, mis-shaped, damaged or not determined by shapes.
        CheckpointError: the destination exists.
    """
    params, moments = split_checkpoint(T5xFolder(source))
    moments = moments if with_optimizer else None
    layout = layout_of(params.tensors)
    about = {"attention": layout.attention, "temperature": list(layout.temperature)}
    notes = () if moments is None else _optimizer_notes(moments)
    import_checkpoint(Checkpoint(T5X, params, moments, layout, about, notes), options)


def _optimizer_notes(moments: Moments) -> tuple[str, ...]:
    notes = [DECAY_NOTE]
    if moments.updates != moments.schedule_steps:
        notes.append(
            f"Adam has counted {moments.updates} updates, the schedules {moments.schedule_steps}: this trainer keeps "
            "Adam's count of pre-training when fine-tuning starts"
        )
    return tuple(notes)
