"""Class names and prompt templates of zero-shot scoring, and the sentences made of them."""

import functools
import json
import string
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Literal, cast

from clipa_eqx.errors import ConfigError, DataError

PromptSet = Literal["clip_paper", "clip_best", "class_name_only", "open_clip"]
ClassNameSet = Literal["imagenet", "imagenet_a", "imagenet_r"]

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)


def named_templates(name: PromptSet) -> tuple[str, ...]:
    """Templates of a published set, each with one ``{}``; a set is data in ``assets/prompt_templates.json``.

    ``clip_paper`` (81) is ``open_clip`` (80, OpenAI's notebook) plus the bare name, as the reference scores;
    ``clip_best`` has 8, ``class_name_only`` 1. Scores of the 80 and of the 81 differ slightly.
    """
    sets = cast(dict[str, list[str]], _asset("prompt_templates.json"))
    if name not in sets:
        raise ConfigError(f"templates={name!r} is no prompt set; take one of {sorted(sets)} or list the templates")
    return tuple(sets[name])


def named_class_names(name: ClassNameSet) -> tuple[str, ...]:
    """Class names of ImageNet (1000, OpenAI's notebook, in label order) or of its A and R subsets (200 each).

    ImageNet's list holds "missile" and "sunglasses" twice: their classes cannot be told apart, and the lower wins.
    """
    imagenet = cast(list[str], _asset("imagenet_class_names.json")["imagenet"])
    if name == "imagenet":
        return tuple(imagenet)
    subsets = cast(dict[str, list[int]], _asset("imagenet_class_names.json"))
    if name not in subsets:
        raise ConfigError(f"class_names={name!r} is no list of class names; take one of {sorted(subsets)}")
    return tuple(imagenet[index] for index in subsets[name])


def read_class_names(path: str) -> tuple[str, ...]:
    """Class names from a UTF-8 text file, one per line in label order; DataError on a missing file or empty line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"class names {path} cannot be read: {error}; give a UTF-8 file, one name per line") from error
    empty = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if empty or not lines:
        where = f"line {empty[0]} is empty" if empty else "the file is empty"
        raise DataError(f"class names {path}: {where}; write one name per line, line k+1 for label k")
    return tuple(lines)


def canonicalize(text: str, *, keep: Literal["", ",", "{}"] = "") -> str:
    """Lower case without ASCII punctuation (except ``keep``); underscores and runs of white space become one space.

    Source: ``evaluators/proj/image_text/prompt_engineering.py`` of the reference. Hyphens vanish ("t-shirt" ->
    "tshirt").
    """
    text = text.replace("_", " ")
    parts = text.split(keep) if keep else [text]
    return " ".join(keep.join(part.translate(_DELETE_PUNCTUATION) for part in parts).lower().split())


def canonical_class_names(names: Sequence[str]) -> tuple[str, ...]:
    """Class names as the reference scores them; commas, which separate synonyms, survive."""
    return tuple(canonicalize(name, keep=",") for name in names)


def canonical_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Templates as the reference scores them; the ``{}`` survives."""
    return tuple(canonicalize(template, keep="{}") for template in templates)


def class_prompts(
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    canonical: bool = True,
    first_name_only: bool = True,
) -> list[list[str]]:
    """Per class its sentences: for each of its names (separated by commas, or only the first) every template.

    Raises ConfigError for a template without ``{}`` and for no templates, DataError for no classes or a class whose
    name is empty (after canonicalization).

    >>> class_prompts(["Fire_Truck, fire engine"], ["a photo of a {}.", "{}"])
    [['a photo of a fire truck', 'fire truck']]
    """
    if not templates:
        raise ConfigError("no prompt templates; name a prompt set or list at least one template such as '{}'")
    for template in templates:
        if "{}" not in template:
            raise ConfigError(
                f"template {template!r} has no {{}} for the class name; write it as in 'a photo of a {{}}.'"
            )
    if not class_names:
        raise DataError("no class names; zero-shot scoring needs one name per label")
    shown = canonical_class_names(class_names) if canonical else tuple(class_names)
    patterns = canonical_templates(templates) if canonical else tuple(templates)
    prompts: list[list[str]] = []
    for label, (given, name) in enumerate(zip(class_names, shown, strict=True)):
        synonyms = name.split(",")[:1] if first_name_only else name.split(",")
        if not all(synonym.strip() for synonym in synonyms):
            raise DataError(
                f"class {label} is named {given!r}, of which nothing is left to put into a prompt; rename it"
            )
        prompts.append([pattern.replace("{}", synonym) for synonym in synonyms for pattern in patterns])
    return prompts


@functools.cache
def _asset(file: str) -> dict[str, object]:
    return json.loads(resources.files("clipa_eqx").joinpath("assets", file).read_text(encoding="utf-8"))
