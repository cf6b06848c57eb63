"""Class names that a record folder is scored with: its own, a published list or a file, checked against its classes."""

import re
from collections.abc import Sequence
from typing import Literal

from clipa_eqx.errors import DataError
from clipa_eqx.evals.prompts import ClassNameSet, named_class_names, read_class_names, wordnet_ids

_WORDNET_ID = re.compile(r"n\d{8}")


def choose_class_names(
    choice: ClassNameSet | Literal["manifest", "file"], own: Sequence[str] | None, *, file: str | None, data: str
) -> tuple[str, ...]:
    """The names of the classes of a record folder, in label order.

    Classes that are WordNet ids of ImageNet get their names by id. So a folder with some of ImageNet's classes is
    scored against these classes, with the numbers that the folder gives them.

    Args:
        choice: the names to take, see ``ZeroShotConfig.class_names``.
        own: the class names in the manifest of the folder.
        file: the file of ``choice="file"``.
        data: the folder, for messages.

    Raises:
        DataError: there are no names, their file cannot be read, there are more or fewer than the folder has classes,
            or classes are WordNet ids that ImageNet does not have.
    """
    if choice != "file":
        _check_ids(own or (), data=data)
    if choice == "manifest":
        if not own:
            raise DataError(
                f"data folder {data} has no class names in its manifest; convert labeled images, such as a folder "
                "per class, or set class_names to 'imagenet' or to 'file' (evaluate.py: --class-names)"
            )
        return _by_id(own, data=data) if _are_ids(own) else tuple(own)
    if choice != "file" and own and _are_ids(own):
        return _by_id(own, data=data, among=choice)
    names = read_class_names(file or "") if choice == "file" else named_class_names(choice)
    if own and len(own) != len(names):
        given = f"the file {file}" if choice == "file" else f"class_names={choice!r}"
        raise DataError(
            f"data folder {data} has {_classes(own)}, but {given} has {len(names):,} names; give one name for each "
            "class, or score with the names in its manifest (class_names='manifest')"
        )
    return names


def _are_ids(names: Sequence[str]) -> bool:
    return set(names) <= wordnet_ids().keys()


def _check_ids(names: Sequence[str], *, data: str) -> None:
    known = wordnet_ids()
    if unknown := [one for one in names if _WORDNET_ID.fullmatch(one) and one not in known]:
        raise DataError(
            f"data folder {data} has {_classes(names)}; {len(unknown):,} of them are WordNet ids that ImageNet's 1,000 "
            f"classes do not have, such as {unknown[0]}: give a file with a name for each class (class_names='file')"
        )


def _by_id(ids: Sequence[str], *, data: str, among: ClassNameSet = "imagenet") -> tuple[str, ...]:
    names = wordnet_ids(among)
    if others := [one for one in ids if one not in names]:
        raise DataError(
            f"data folder {data} has {_classes(ids)}, but class_names={among!r} has {len(names):,} names, which do not "
            f"include {others[0]} ({wordnet_ids()[others[0]]}); use class_names='imagenet'"
        )
    return tuple(names[one] for one in ids)


def _classes(names: Sequence[str]) -> str:
    shown = ", ".join(f"{i} = {name[:40]}" for i, name in enumerate(names[:3]))
    count = "1 class" if len(names) == 1 else f"{len(names):,} classes"
    return f"{count} ({shown}{', ...' if len(names) > 3 else ''})"
