"""Class names and prompt templates for zero-shot scoring, and the sentences made from them."""

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
PromptReduction = Literal["truncate", "syntax"]
"""How prompts longer than the text tower are cut."""

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)


def named_templates(name: PromptSet) -> tuple[str, ...]:
    """Templates of a published set, each with one ``{}``; the sets are in ``assets/prompt_templates.json``.

    ``clip_paper`` has 81: the 80 of ``open_clip`` (OpenAI's notebook) and the bare name, as the reference scores.
    ``clip_best`` has 8, ``class_name_only`` 1. Scores with 80 and with 81 templates differ slightly.

    Raises:
        ConfigError: there is no such set.
    """
    sets = cast(dict[str, list[str]], _asset("prompt_templates.json"))
    if name not in sets:
        raise ConfigError(f"templates={name!r} is no prompt set; use one of {sorted(sets)} or list the templates")
    return tuple(sets[name])


def named_class_names(name: ClassNameSet) -> tuple[str, ...]:
    """Class names of ImageNet (1000, OpenAI's notebook, in label order) or of its A and R subsets (200 each).

    ImageNet's list has "missile" and "sunglasses" twice. Such twins get the same embedding, and the lower class wins.

    Raises:
        ConfigError: there is no such list.
    """
    imagenet = cast(list[str], _asset("imagenet_class_names.json")["imagenet"])
    if name == "imagenet":
        return tuple(imagenet)
    subsets = cast(dict[str, list[int]], _asset("imagenet_class_names.json"))
    if name not in subsets:
        raise ConfigError(f"class_names={name!r} is no list of class names; use one of {sorted(subsets)}")
    return tuple(imagenet[index] for index in subsets[name])


def prompt_reduction(of_training: str | None) -> PromptReduction:
    """Cut prompts as captions were cut in training, unless that was random or is not recorded: then truncate."""
    return "syntax" if of_training == "syntax" else "truncate"


def read_class_names(path: str) -> tuple[str, ...]:
    """Class names from a UTF-8 text file, one per line in label order.

    Raises:
        DataError: the file cannot be read, is empty, or has an empty line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"class names {path} cannot be read: {error}; give a UTF-8 file, one name per line") from error
    empty = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if empty or not lines:
        where = f"line {empty[0]} is empty" if empty else "the file is empty"
        raise DataError(f"class names {path}: {where}; write one name per line, line k+1 for label k")
    return tuple(lines)


def canonicalize(text: str, *, keep: Literal["", ",", "{}"] = "") -> str:
    """Lower case without ASCII punctuation (except ``keep``); underscores and consecutive white space become one space.

    Source: ``evaluators/proj/image_text/prompt_engineering.py`` of the reference. Hyphens vanish ("t-shirt" ->
    "tshirt").
    """
    text = text.replace("_", " ")
    parts = text.split(keep) if keep else [text]
    return " ".join(keep.join(part.translate(_DELETE_PUNCTUATION) for part in parts).lower().split())


def canonical_class_names(names: Sequence[str]) -> tuple[str, ...]:
    """Class names as the reference scores them; commas, which separate synonyms, are kept."""
    return tuple(canonicalize(name, keep=",") for name in names)


def canonical_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Templates as the reference scores them; the ``{}`` is kept."""
    return tuple(canonicalize(template, keep="{}") for template in templates)


def class_prompts(
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    canonical: bool = True,
    first_name_only: bool = True,
) -> list[list[str]]:
    """The sentences of each class: every template with every name (or only the first of names separated by commas).

    Raises:
        ConfigError: a template has no ``{}``, or there are no templates.
        DataError: there are no classes, or a name is empty (after canonicalization).

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
            raise DataError(f"class {label} is named {given!r}, which leaves nothing to put into a prompt; rename it")
        prompts.append([pattern.replace("{}", synonym) for synonym in synonyms for pattern in patterns])
    return prompts


@functools.cache
def _asset(file: str) -> dict[str, object]:
    return json.loads(resources.files("clipa_eqx").joinpath("assets", file).read_text(encoding="utf-8"))
