"""Class names and prompt templates for zero-shot scoring, and the sentences made from them."""

import functools
import json
import string
from collections.abc import Mapping, Sequence
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


@functools.cache
def wordnet_ids(name: ClassNameSet = "imagenet") -> Mapping[str, str]:
    """The WordNet ids of the classes of a list, in label order, each with the name of its class.

    >>> wordnet_ids()["n01440764"]
    'tench'
    """
    text = resources.files("clipa_eqx").joinpath("assets", "imagenet_wordnet_ids.txt").read_text(encoding="utf-8")
    ids, indices = text.split(), cast(dict[str, list[int]], _asset("imagenet_class_names.json"))
    if name != "imagenet":
        ids = [ids[index] for index in indices[name]]
    return dict(zip(ids, named_class_names(name), strict=True))


def read_class_names(path: str) -> tuple[str, ...]:
    """Class names from a UTF-8 text file, one per line in label order. Empty lines at its end are ignored.

    Raises:
        DataError: the file cannot be read, is empty, or has an empty line before its last name.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"class names {path} cannot be read: {error}; give a UTF-8 file, one name per line") from error
    return parse_class_names(content, where=f"class names {path}")


def parse_class_names(content: bytes, *, where: str) -> tuple[str, ...]:
    """Class names from the content of a file: one per line in label order. Empty lines at its end are ignored.

    Raises:
        DataError: it is not UTF-8, has no name, or has an empty line before its last name.
    """
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{where} cannot be read: {error}; give a UTF-8 file, one name per line") from error
    while lines and not lines[-1].strip():
        lines.pop()
    empty = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if empty or not lines:
        problem = f"line {empty[0]} is empty" if empty else "the file is empty"
        raise DataError(f"{where}: {problem}; write one name per line, line k+1 for label k")
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
    commas_in_names: bool = False,
) -> list[list[str]]:
    """The sentences of each class: every template with every name (or only the first of names separated by commas).

    Args:
        templates: sentences with ``{}``, or with CLIP_benchmark's ``{c}``, for the name.
        commas_in_names: commas are part of a name and do not separate names.

    Raises:
        ConfigError: a template has no place for the name, or there are no templates.
        DataError: there are no classes, or a name is empty (after canonicalization).

    >>> class_prompts(["Fire_Truck, fire engine"], ["a photo of a {}.", "{}"])
    [['a photo of a fire truck', 'fire truck']]
    """
    if not templates:
        raise ConfigError("no prompt templates; name a prompt set or list at least one template such as '{}'")
    for template in templates:
        if "{}" not in template and "{c}" not in template:
            raise ConfigError(
                f"template {template!r} has no {{}} for the class name; write it as in 'a photo of a {{}}.'"
            )
    if not class_names:
        raise DataError("no class names; zero-shot scoring needs one name per label")
    shown = canonical_class_names(class_names) if canonical else tuple(class_names)
    plain = [template.replace("{c}", "{}") for template in templates]
    patterns = canonical_templates(plain) if canonical else tuple(plain)
    prompts: list[list[str]] = []
    for label, (given, name) in enumerate(zip(class_names, shown, strict=True)):
        synonyms = [name] if commas_in_names else name.split(",")[:1] if first_name_only else name.split(",")
        if not all(synonym.strip() for synonym in synonyms):
            raise DataError(f"class {label} is named {given!r}, which leaves nothing to put into a prompt; rename it")
        prompts.append([pattern.replace("{}", synonym) for synonym in synonyms for pattern in patterns])
    return prompts


@functools.cache
def _asset(file: str) -> dict[str, object]:
    return json.loads(resources.files("clipa_eqx").joinpath("assets", file).read_text(encoding="utf-8"))
