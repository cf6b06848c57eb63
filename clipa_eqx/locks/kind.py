"""Kinds of locks: the name of the file, and the words and the class of the errors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipa_eqx.errors import ClipaError
from clipa_eqx.locks.owner import described, is_here


@dataclass(frozen=True, kw_only=True)
class LockKind:
    """A kind of folder that one process at a time works in.

    Attributes:
        name: of the lock in the folder: a file, or in a bucket a folder of objects.
        folder: the kind of folder in messages, such as "run folder".
        work: what the owner of the lock does there, such as "run".
        when_killed: what `kill` does to the owner, such as "lets it save and end".
        otherwise: what to do instead of waiting, such as "give another --workdir".
        error: class of the errors.
    """

    name: str
    folder: str
    work: str
    when_killed: str
    otherwise: str
    error: type[ClipaError]

    def in_use(self, where: object, owner: Mapping[str, Any]) -> ClipaError:
        """The error for a folder that another process works in."""
        here = f"`kill {owner.get('pid')}` {self.when_killed}"
        how = here if is_here(owner) else "there, or in the scheduler that started it"
        return self.error(
            f"{self.folder} {where} is in use by {described(owner)}; wait until that {self.work} ends, stop it "
            f"({how}), or {self.otherwise}"
        )

    def lost(self, where: object, what: str, *, or_else: str) -> ClipaError:
        """The error for a lock that another process took from this one.

        Args:
            where: the folder.
            what: what became of it, such as "was taken over by ...".
            or_else: the reason if this process was not suspended.
        """
        return self.error(
            f"{self.folder} {where} {what}, because this process gave no sign of life for too long (it was suspended, "
            f"or {or_else}). This {self.work} ends now; let the other one finish, or stop it and run this command again"
        )
