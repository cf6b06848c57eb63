"""One word for one thing: words that the prose of this repository does not use, and what it uses instead."""

import re
from collections.abc import Iterable

# A pattern of words, case ignored, and what to write instead.
GLOSSARY: tuple[tuple[str, str], ...] = (
    (r"\b(go|goes|going|gone|went) on\b", "resume, continue"),
    (r"\b(tell|tells|told)\b", "report, determine, record"),
    (r"\b(lie|lies|lying|lain) (in|at|on|beside|under|within|there)\b", "is in"),
    (r"\bstands? for\b", "is, means"),
    (r"\bbeside\b", "next to, compared with"),
    (r"\bbesides\b", "in addition to"),
    (r"\bbut for\b|\ball but\b|no \w+ but\b", "except"),
    (r"\bmend(s|ed|ing)?\b", "fix"),
    (r"\bpictures?\b", "image"),
    (r"\bdrawings?\b", "icon, image"),
    (r"\bdrawn (from|at random|by)\b", "sampled"),
    (r"\bart[ei]facts?\b|\bsaved models?\b", "model folder"),
    (r"\bwork(ing)? folders?\b|(?<!-)\bworkdirs?\b(?!:)", "run folder; current directory"),
    (r"\bsets? of records\b|\brecord sets?\b|\bfolders? of records\b", "record folder"),
    (r"\bhabits?\b", "setting"),
    (r"\bslip of the pen\b|\bby heart\b|\bwhole road\b", "plain words"),
    (r"\banew\b|\bafresh\b", "again, from the beginning"),
    (r"\bwho wants to\b|\bwhoever\b", "a user who wants to"),
    (r"\bof before\b", "from earlier versions"),
    (r"\bas it is\b", "unchanged"),
    (r"\w*optimis\w*", "optimize, optimizer"),
    (r"\w*normalis\w*", "normalize"),
    (r"\w*colour\w*", "color"),
    (r"\w*tokenis\w*", "tokenize, tokenizer"),
    (r"\w*initialis\w*", "initialize"),
    (r"\w*(labell|cancell|modell)(ed|ing)\w*", "one l: labeled, labeling"),
    (r"\w*canonicalis\w*|\w*regularis\w*|\w*vectoris\w*|\w*quantis\w*", "-ize"),
    (r"\bcentres?\b|\bcentred\b|\blicences?\b|\bgrey\b|\bbehaviours?\b|\bneighbour\w*", "US spelling"),
)


def problems(path: str, lines: Iterable[str], glossary: Iterable[tuple[str, str]] = GLOSSARY) -> list[str]:
    """One message per banned word: file, line, the word, and what to write instead. A line end counts as a space."""
    text = prose(lines)
    found = [
        (text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), instead)
        for pattern, instead in glossary
        for match in re.finditer(pattern.replace(" ", r"\s+"), text, re.IGNORECASE)
    ]
    return [f"{path}:{number}: {word!r}; write: {instead}" for number, word, instead in sorted(found)]


# Blocks first, because a block may contain what looks like a span. Spans and links may go over the end of a line.
_NO_PROSE = (
    r"(?ms)^```.*?^```$",
    r"(?m)(?<=\n\n)(?: {4}\S.*\n?)+",
    r"(?s)<!--.*?-->",
    r"``[^`]*``|`[^`]*`",
    r"\]\([^)]*\)",
    r"https?://\S+",
)


def prose(lines: Iterable[str]) -> str:
    """Markdown with everything blanked that is not prose, in as many lines as before."""
    text = "\n".join(line.rstrip("\n") for line in lines)
    for pattern in _NO_PROSE:
        text = re.sub(pattern, _blank, text)
    return text


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])
