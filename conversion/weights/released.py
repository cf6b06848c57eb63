"""The table of all released CLIPA models: what each one is, its address, its parameter count and its score."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from clipa_eqx.data.images.evaluation import EvalImageConfig
from conversion.weights.numerics import PROFILES, Profile, TowerNumerics, with_numerics

if TYPE_CHECKING:
    from clipa_eqx.models.clip import CLIPConfig

Stage = Literal["pre-training", "fine-tuning"]
Data = Literal["LAION-2B", "DataComp-1B"]

CHECKED = "layout, parameter count, forward pass with synthetic weights of full size; the released files were not run"
"""Checks of the released files; none of them could be downloaded where this package was developed."""

SCORE_NOTE = (
    "Two scores: the first is from the README of the reference's JAX code, the second from its torch README and from "
    "open_clip."
)


@dataclass(frozen=True, kw_only=True)
class ReleasedModel:
    """One released file.

    Attributes:
        name: its name for ``--released``.
        profile: format and numerics (docs/reference.md F4.4): "flax" is an npz file of the reference, "open_clip" a
            repository of the Hugging Face hub.
        stage: pre-training with few pixels and 8 tokens, or the fine-tuning after it.
        preset: the architecture, a name of ``models.presets.PRESETS``.
        image_size: pixels per side.
        length: text tokens.
        data: its training data.
        schedule: samples seen at each resolution.
        top1: published zero-shot ImageNet accuracy in percent; several where texts disagree (docs/reference.md F5.3).
        url: its address; for open_clip ``hf-hub:REPO``, which ``conversion.open_clip import`` accepts.
        parameters: exact number of parameters of our model; computed image positions are not counted.
        stored: number of values in the file; open_clip also stores the image positions.
    """

    name: str
    profile: Profile
    stage: Stage
    preset: str
    image_size: int
    length: int
    data: Data
    schedule: str
    top1: tuple[float, ...]
    url: str
    parameters: int
    stored: int

    @property
    def resize(self) -> Literal["squash", "resize_small_crop"]:
        """Resizing of images for the published score; bilinear, ImageNet mean and std (docs/reference.md F4.2).

        Pre-training recipes scored with a center crop, the others and open_clip squash (docs/reference.md F5.1, F5.2).
        """
        return "resize_small_crop" if self.stage == "pre-training" else "squash"

    @property
    def text_reduction(self) -> Literal["truncate", "syntax"]:
        """Shortening of prompts longer than ``length`` for the published score (docs/reference.md F5.1, D27)."""
        return "syntax" if self.stage == "pre-training" else "truncate"

    @property
    def score(self) -> str:
        return " / ".join(f"{value:.2f}".removesuffix("0") for value in self.top1)

    def config(self) -> "CLIPConfig":
        """The architecture: sin-cos image positions, image pool "gap", text pool "last", 32,000 token rows."""
        from clipa_eqx.models.presets import preset  # loads jax, which printing the table does not need

        config = preset(self.preset, image_size=self.image_size, length=self.length)
        return with_numerics(config, TowerNumerics(PROFILES[self.profile], PROFILES[self.profile]))

    def preprocess(self) -> EvalImageConfig:
        """The preparation of images for scoring."""
        return EvalImageConfig(size=(self.image_size, self.image_size), resize=self.resize)


_COUNTS = {"L/14": (413_947_393, 768, 1024), "H/14": (967_906_049, 1024, 1280), "bigG/14": (2_516_796_289, 1280, 1664)}
"""Parameters with 32 text tokens, text width, image width."""

_DRIVE_FOLDER, _DRIVE_FILE = "https://drive.google.com/drive/folders/", "https://drive.google.com/file/d/"


def _row(
    profile: Profile,
    name: str,
    pixels: int,
    data: Data,
    seen: str,
    top1: tuple[float, ...],
    url: str,
    *,
    suffix: str = "",
) -> ReleasedModel:
    stage: Stage = "pre-training" if "+" not in seen else "fine-tuning"
    length = 8 if stage == "pre-training" else 32
    base, text_width, image_width = _COUNTS[name]
    parameters = base - (32 - length) * text_width
    positions = ((pixels // 14) ** 2 + 1) * image_width if profile == "open_clip" else 0
    short = f"{name.lower().replace('/', '')}-{pixels}px-t{length}-{data.replace('-', '').lower()}"
    return ReleasedModel(
        name=short + suffix + ("-open-clip" if profile == "open_clip" else ""),
        profile=profile,
        stage=stage,
        preset=name,
        image_size=pixels,
        length=length,
        data=data,
        schedule=seen,
        top1=top1,
        url=url,
        parameters=parameters,
        stored=parameters + positions,
    )


def _rows() -> Iterator[ReleasedModel]:
    folder, file = _DRIVE_FOLDER, _DRIVE_FILE
    laion: Data = "LAION-2B"
    datacomp: Data = "DataComp-1B"
    at84, to224, to336 = "12.8B@84", "12.8B@84 + 512M@224", "12.8B@84 + 512M@224 + 128M@336"
    yield _row("flax", "H/14", 70, laion, "12.8B@70", (70.1,), folder + "1krPlh7Btsc7XgqMHaxjJVVZQLFoSJO3Z")
    yield _row("flax", "H/14", 84, laion, at84, (72.1,), folder + "1xSxdNZFg2Vhun5898fQdDxGG8c8ex-wm")
    yield _row("flax", "L/14", 84, datacomp, at84, (72.7,), folder + "1imPeZKbLjjRVGI_vo-2FQ1KdTQ10EAJN")
    yield _row("flax", "H/14", 84, datacomp, at84, (75.6,), folder + "19utZrXiCnlFBvLljhCsymH969-WvGf4c")
    yield _row("flax", "bigG/14", 84, datacomp, at84, (78.5,), folder + "1afYnSkC9MUkFiZ4t1-r3guacEQ3r3HjP")
    yield _row("flax", "H/14", 224, laion, to224, (78.6,), file + "1H0ZNNvySDrZ2hmBrc9PrjdQP8YftwGFh")
    yield _row("flax", "H/14", 336, laion, to336, (79.1,), file + "1IQ0BgWGy0Tsui9iK_wdVifFKc3NfC0BD")
    yield _row("flax", "L/14", 224, datacomp, to224, (79.7,), file + "1oh9IFuX9pD0nd-m4Apl-Z9irX3N-G2_h")
    yield _row("flax", "L/14", 336, datacomp, to336, (80.3,), file + "1yJD8p27HdZGK2DZ8x64uR6idl_QNkL7w")
    yield _row(
        "flax",
        "H/14",
        224,
        datacomp,
        "12.8B@70 + 512M@224",
        (81.1,),
        file + "1f55nRM5DQu0lnLbmCp1GttuTFrJg2UDP",
        suffix="-from70px",
    )
    yield _row("flax", "H/14", 224, datacomp, to224, (81.5,), file + "1Rpd157eay3t8_qsrnSHi_nWeGmhQGTvN")
    yield _row("flax", "H/14", 336, datacomp, to336, (81.8,), file + "1t0k_5m3VVLRyThUjc4JQ_-z29hABuFBV")
    yield _row("flax", "bigG/14", 224, datacomp, to224, (82.5, 82.7), file + "1kgcfTOEcn1koZf_HkZYZhDpz4p5wKWPY")
    yield _row("flax", "bigG/14", 336, datacomp, to336, (83.0,), file + "1WwXPYb61Zoz-Zd3R5sRwEIGlPRDj3QJo")
    # Scores that open_clip measured with its own code, tokenizer and 80 templates.
    measured: tuple[tuple[str, int, Data, str, float, str], ...] = (
        ("L/14", 224, datacomp, to224, 79.57, "ViT-L-14-CLIPA-datacomp1B"),
        ("L/14", 336, datacomp, to336, 80.26, "ViT-L-14-CLIPA-336-datacomp1B"),
        ("H/14", 224, datacomp, to224, 81.52, "ViT-H-14-CLIPA-datacomp1B"),
        ("H/14", 336, laion, to336, 79.10, "ViT-H-14-CLIPA-336-laion2B"),
        ("H/14", 336, datacomp, to336, 81.80, "ViT-H-14-CLIPA-336-datacomp1B"),
        ("bigG/14", 224, datacomp, to224, 82.70, "ViT-bigG-14-CLIPA-datacomp1B"),
        ("bigG/14", 336, datacomp, to336, 83.09, "ViT-bigG-14-CLIPA-336-datacomp1B"),
    )
    for model, pixels, data, seen, top1, repo in measured:
        yield _row("open_clip", model, pixels, data, seen, (top1,), f"hf-hub:UCSC-VLAA/{repo}")


RELEASED: Mapping[str, ReleasedModel] = MappingProxyType({row.name: row for row in _rows()})
"""Every released model by name."""


def markdown_table() -> str:
    """The table of ``docs/weights.md``, between its markers; a test compares the two."""
    lines = [
        "| name | format | trained on | samples@pixels | ImageNet zero-shot | parameters | where |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in RELEASED.values():
        where = f"`{row.url}`" if row.profile == "open_clip" else f"[download]({row.url})"
        cells = (f"`{row.name}`", row.profile, row.data, row.schedule, row.score, f"{row.parameters:,}", where)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{SCORE_NOTE}\n\nChecked here for every row: {CHECKED}.\n"


def plain_table() -> str:
    """The table that ``python -m conversion.released`` prints."""
    rows = [("name", "format", "preset", "pixels", "tokens", "data", "samples@pixels", "top-1", "parameters", "where")]
    for r in RELEASED.values():
        sizes = (str(r.image_size), str(r.length))
        rows.append((r.name, r.profile, r.preset, *sizes, r.data, r.schedule, r.score, f"{r.parameters:,}", r.url))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(
        [
            *lines,
            "",
            f"top-1: published zero-shot ImageNet accuracy in percent. {SCORE_NOTE}",
            "All: sin-cos image positions, image pool gap, text pool last; images bilinear, ImageNet mean and std.",
            "Models of 8 tokens: center crop, prompts reduced by syntax. The others: squash, prompts truncated.",
            "flax: tanh GELU, epsilon 1e-6, reads the file `.npz`. open_clip: exact GELU, epsilon 1e-5.",
            f"Checked here: {CHECKED}.",
            "Check your file with `python -m conversion.verify DIR`.",
        ]
    )
