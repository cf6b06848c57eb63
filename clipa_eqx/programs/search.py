"""Search a folder of photos, or embeddings, by text or by image."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import exit_on_sigterm, run
from clipa_eqx.errors import ConfigError

EPILOG = """INDEX is a folder of photos, or a folder that clipa-embed wrote. A folder of photos is embedded with --model
when it is searched for the first time; later only new and changed files are, deleted ones are dropped, and --model is
not needed. Its index is a folder in the cache (CLIPA_EQX_CACHE, or clipa_eqx in XDG_CACHE_HOME, or ~/.cache/clipa_eqx),
or the one that --index names; nothing is written to the folder of photos. An index is of one model: name another
--index to search the same photos with a second one. Several queries are answered at once.
Every vector is compared with the query, unless --approximate is given. A score is the cosine of the two, so only the
order of scores has a meaning.
Exit codes: 0 done, 2 a mistake in index, model or arguments, 1 anything else."""


def main(argv: Sequence[str] | None = None) -> None:
    """Search, print the results, and write the page. Raises ClipaError for a mistake of the user."""
    arguments = _parser().parse_args(argv)
    if arguments.html is not None and arguments.html.is_dir():
        raise ConfigError(f"--html {arguments.html} is a folder; give the name of an HTML file")
    exit_on_sigterm("stopped; photos that were embedded stay in the index")

    # The work needs jax; --help does not.
    from clipa_eqx.programs.searching import Query, Request, search, write_page

    texts: list[str] = arguments.text or []
    images: list[Path] = arguments.image or []
    answer = search(
        Request(
            index=arguments.index_or_photos,
            queries=[*map(Query, texts), *map(Query, images)],
            k=arguments.k,
            model=arguments.model,
            photo_index=arguments.index,
            batch_size=arguments.batch_size,
            is_approximate=arguments.approximate,
        )
    )
    print(answer.about)
    for one in answer.results:
        print(f"\n{one.query}")
        for rank, card in enumerate(one.cards, start=1):
            words = f"  {' '.join(card.words.split())}" if card.words else ""
            print(f"{rank:>4}  {card.score:.4f}  {card.name}{words}")
    if arguments.html is not None:
        write_page(arguments.html, answer)
        print(f"\nwritten to {arguments.html}")


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index_or_photos", type=Path, metavar="INDEX", help="a folder of photos or of embeddings")
    parser.add_argument("--text", action="append", metavar="TEXT", help="find what fits this text; may be repeated")
    parser.add_argument(
        "--image", action="append", type=Path, metavar="FILE", help="find what is like this image; may be repeated"
    )
    parser.add_argument("-k", type=int, default=5, metavar="N", help="results per query; default: 5")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="MODEL_OR_RUN",
        help="a model folder, a run folder, or the name of a model; default: the model of the index",
    )
    parser.add_argument("--index", type=Path, metavar="DIR", help="folder for the index of a folder of photos")
    parser.add_argument("--html", type=Path, metavar="FILE.html", help="also write a page of thumbnails, replacing it")
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="search a graph of neighbors, for millions of rows (extra search); its recall is printed",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="photos embedded at once; default: 64")
    return parser
