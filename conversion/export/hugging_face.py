"""A repository of the Hugging Face hub: the files that open_clip loads, a model card, and attributes for git."""

import logging
from collections.abc import Iterator
from pathlib import Path

from clipa_eqx.errors import ConfigError, ConversionError
from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.replacing import FolderKind, new_folder
from clipa_eqx.reports.scores import Latest, latest_scores
from clipa_eqx.saved.kinds import METRICS_NAME
from clipa_eqx.saved.model_folder import ModelFolder
from clipa_eqx.saved.provenance import Provenance
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.trees import count_params
from conversion.export.source import FinishedModel
from conversion.open_clip.exporting import EXPORTED_FILES, is_export, log_differences, prepare_export, write_export

CARD_FILE, ATTRIBUTES_FILE = "README.md", ".gitattributes"

_KIND = FolderKind(
    name="repository that was exported here", files=EXPORTED_FILES | {CARD_FILE, ATTRIBUTES_FILE}, is_one=is_export
)
_ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"

_log = logging.getLogger(__name__)


def export_hugging_face(
    model: FinishedModel, target: Path, *, license_name: str | None = None, overwrite: bool = False
) -> Path:
    """Write a folder that can be uploaded as a repository; it appears once complete.

    Args:
        model: the model folder, and the run whose last scores the card shows.
        target: the folder to write.
        license_name: identifier of the license of the weights; None is what the provenance records, or none.
        overwrite: replace a folder that this function wrote.

    Raises:
        CheckpointError: the model folder is damaged, or ``target`` exists and must not be replaced.
        ConfigError: tokenizer or preprocessing do not fit the model, or the license is not an identifier.
        ConversionError: open_clip cannot represent the model, or ``target`` cannot be written.
    """
    if license_name is not None and not (license_name and license_name.isascii() and license_name.isprintable()):
        raise ConfigError(f"--license is {license_name!r}; give an identifier such as apache-2.0")
    prepared = prepare_export(model.folder)
    scores = [] if model.run is None else latest_scores(read_metrics(model.run / METRICS_NAME))
    card = model_card(prepared.opened, scores=scores, license_name=license_name)
    try:
        with new_folder(target, _KIND, overwrite=overwrite, sources=[model.folder]) as new:
            write_export(prepared, new)
            (new / CARD_FILE).write_text(card, encoding="utf-8")
            (new / ATTRIBUTES_FILE).write_text(_ATTRIBUTES, encoding="utf-8")
    except OSError as error:
        raise ConversionError(f"{target} cannot be written ({error}); no partial folder was left") from error
    log_differences(prepared, target)
    _log.info("%s: read its %s, then upload the folder with `hf upload OWNER/NAME %s`", target, CARD_FILE, target)
    return target


def model_card(opened: ModelFolder, *, scores: list[Latest], license_name: str | None = None) -> str:
    """The model card: only what the model folder and its run record.

    Args:
        opened: the model folder.
        scores: the last scores of the run.
        license_name: identifier of the license; None is what the provenance records, or none.
    """
    recorded = opened.provenance.extra.get("license")
    known = license_name or (recorded if isinstance(recorded, str) and recorded else None)
    header = ["library_name: open_clip", "pipeline_tag: zero-shot-image-classification", "tags: [clip, clipa]"]
    header += [] if known is None else [f"license: {known}"]
    title = (
        f"The license of the weights is {known}."
        if known is not None
        else "The license of the weights is not recorded: add it here and above (`license:`) before you publish them."
    )
    return "\n".join(
        [
            "---",
            *header,
            "---",
            "",
            "# CLIP model",
            "",
            "An image encoder and a text encoder into one space, in the architecture of CLIPA, written by `clipa_eqx`.",
            title,
            "",
            *_facts(opened),
            "",
            *_score_table(scores),
            "## Use",
            "",
            "With open_clip (the tokenizer needs transformers):",
            "",
            "```python",
            "import open_clip",
            "",
            'name = "hf-hub:OWNER/NAME"  # this repository, or local-dir: and the path of a copy',
            "model, _, transform = open_clip.create_model_and_transforms(name)",
            "tokenizer = open_clip.get_tokenizer(name)",
            "```",
            "",
            "With clipa_eqx:",
            "",
            "```python",
            "import clipa_eqx",
            "",
            'clip = clipa_eqx.load_model("hf-hub:OWNER/NAME")  # converted once, into the cache',
            "```",
            "",
        ]
    )


def _facts(opened: ModelFolder) -> Iterator[str]:
    config, steps = opened.config, opened.preprocess
    image, text = config.image, config.text
    yield "| | |"
    yield "|---|---|"
    yield f"| parameters | {count_params(abstract_clip(config)):,} |"
    yield f"| images | {image.image_size[0]} x {image.image_size[1]} pixels, patches of {image.patch_size[0]} |"
    yield f"| resizing | {steps.resize}, bilinear with antialiasing; ImageNet mean and standard deviation |"
    yield f"| image tower | {image.blocks.depth} blocks of width {image.blocks.width} |"
    yield f"| text tower | {text.blocks.depth} blocks of width {text.blocks.width}, {text.length} tokens |"
    yield f"| vocabulary | {opened.tokenizer.vocab_size:,} word pieces |"
    yield f"| embedding | {image.output} values |"
    yield from _origin(opened.provenance)


def _origin(provenance: Provenance) -> Iterator[str]:
    if provenance.source is not None and provenance.source.name:
        digest = "" if provenance.source.sha256 is None else f", SHA-256 {provenance.source.sha256}"
        yield f"| source | {Path(provenance.source.name).name}{digest} |"
    if provenance.format is not None:
        yield f"| imported from | {provenance.format} |"
    if provenance.steps is not None:
        yield f"| training | {provenance.steps:,} steps{_batch(provenance)} |"


def _batch(provenance: Provenance) -> str:
    match provenance.run:
        case {"config": {"batch_size": int(size)}}:
            return f" of {size:,} pairs"
        case _:
            return ""


def _score_table(scores: list[Latest]) -> Iterator[str]:
    if not scores:
        return
    yield "## Scores"
    yield ""
    yield "As logged by the training run, at the step of the last evaluation:"
    yield ""
    yield "| evaluation | score | value | step |"
    yield "|---|---|---|---|"
    for one in scores:
        yield f"| {one.name.evaluation} | {one.name.score} | {one.name.text(one.value)} | {one.step:,} |"
    yield ""
