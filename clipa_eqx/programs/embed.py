"""Embed images or texts with a model: shards of unit vectors and a description of all of them."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.buckets.bucket import address, bucket_at
from clipa_eqx.cli import exit_on_sigterm, run
from clipa_eqx.cluster.engine import ENGINE_HELP, parse_engine
from clipa_eqx.commands import command_line, next_lines
from clipa_eqx.errors import ConfigError, counted
from clipa_eqx.programs.distributed import add_distributed_flags, processes_of
from clipa_eqx.programs.mesh_flag import mesh_sizes

if TYPE_CHECKING:
    from clipa_eqx.search.embedding import Summary

EPILOG = """Images are the files of a folder and its subfolders (.jpg, .jpeg, .png, .webp, .gif, .bmp), or those of a
record folder. Texts are the lines of a UTF-8 file, or all captions of a record folder. OUT gets NNNNN.npy with the unit
vectors of each shard, NNNNN.json with their ids in the same order, and embeddings.json with model, inputs and shards.
Preparation of images and texts is that of the model, as for scoring.
A command that was interrupted resumes when it is run again, and writes only the missing shards. With --distributed,
all hosts write to the same folder, each its share of the shards. With --engine ray, one command gives shards to the
nodes of a Ray cluster as they become free; model, inputs and OUT must be on storage that all nodes share. OUT is a
local folder (also one on a network file system), not one in a bucket.
Exit codes: 0 done, 2 a mistake in model, inputs or arguments, 1 anything else."""

_INTERRUPTED = "stopped; complete shards stay, and the same command resumes"


def main(argv: Sequence[str] | None = None) -> None:
    """Embed, and print what was written. Raises ClipaError for a mistake of the user."""
    arguments = _parser().parse_args(argv)
    if arguments.parquet and arguments.out.suffix:
        raise ConfigError(f"--out {arguments.out} is the name of a file; give a folder, which gets a file per shard")
    mesh = None if arguments.mesh is None else mesh_sizes(arguments.mesh)
    if bucket_at(arguments.out) is not None:
        raise ConfigError(f"--out {address(arguments.out)} is in a bucket; give a local folder, and copy it there")
    processes, engine = processes_of(arguments), parse_engine(arguments.engine)
    if engine.kind == "ray" and processes is not None:
        raise ConfigError("--engine ray starts the processes of all nodes itself; leave out --distributed")
    if engine.kind == "local" and arguments.workers is not None:
        raise ConfigError("--workers has no effect without --engine ray; add it")
    if arguments.workers is not None and arguments.workers < 1:
        raise ConfigError(f"--workers is {arguments.workers}; it must be at least 1")
    exit_on_sigterm(_INTERRUPTED)

    # The work needs jax; --help does not.
    from clipa_eqx.programs.connection import connect_processes, is_first_process
    from clipa_eqx.programs.embedding_cluster import run_embedding_on
    from clipa_eqx.programs.embedding_run import Request, run_embedding
    from clipa_eqx.search.embedding import EmbeddingOptions

    if processes is not None:
        connect_processes(processes)
    request = Request(
        model=arguments.model,
        images=arguments.images,
        texts=arguments.texts,
        out=arguments.out,
        options=EmbeddingOptions(
            dtype=arguments.dtype,
            shard_inputs=arguments.shard_inputs,
            batch_size=arguments.batch_size,
            skips_unreadable=arguments.on_unreadable == "skip",
            with_parquet=arguments.parquet,
        ),
        image_mode=arguments.image_mode,
        text_reduction=arguments.text_reduction,
        mesh=mesh,
    )
    if engine.kind == "ray":  # JAX, which the others start, is not used in this process
        _print_result(run_embedding_on(engine, request, workers=arguments.workers), arguments)
        return
    summary = run_embedding(request)
    if is_first_process():
        _print_result(summary, arguments)


def _print_result(summary: "Summary", arguments: argparse.Namespace) -> None:
    what = "image" if arguments.images is not None else "text"
    print(f"{counted(summary.rows, what)} in {counted(summary.shards, 'shard')}, {summary.new:,} of them new")
    if summary.unreadable:
        print(f"left out, because they cannot be read: {counted(summary.unreadable, 'input')}")
        print("\n".join(f"  {one.id}: {one.reason}" for one in summary.named))
        if summary.unreadable > len(summary.named):
            print(f"  ... and {summary.unreadable - len(summary.named):,} more; each shard's .json has its own")
    if summary.truncated:
        print(f"{counted(summary.truncated, 'text')} longer than the text tower, and cut")
    print(f"written to {arguments.out}")
    search = command_line("search", arguments.out, "--text", "TEXT")
    print("\n".join(next_lines((search, "the most similar ones"))))


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", type=Path, metavar="MODEL_OR_RUN", help="a model folder, a run folder, or the name of a model"
    )
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--images", metavar="DIR", help="a folder with image files, or a record folder")
    inputs.add_argument("--texts", metavar="FILE|RECORDS", help="a UTF-8 file of lines, or a record folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder, or one to resume")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="default: float32")
    parser.add_argument("--parquet", action="store_true", help="also write each shard as Parquet (extra parquet)")
    parser.add_argument(
        "--on-unreadable",
        choices=("refuse", "skip"),
        default="refuse",
        help="skip leaves out inputs that cannot be read, and names them; default: refuse, which stops at the first",
    )
    parser.add_argument(
        "--shard-inputs", type=int, default=4096, help="inputs per shard, the work that a kill loses; default: 4096"
    )
    parser.add_argument("--batch-size", type=int, default=256, help="inputs at once over all devices; default: 256")
    parser.add_argument("--image-mode", choices=("exact", "fast"), help="default: the mode saved with the model")
    parser.add_argument(
        "--text-reduction",
        choices=("truncate", "syntax"),
        help="how texts longer than the text tower are cut; default: as in the model's training",
    )
    parser.add_argument(
        "--mesh", metavar="DxFxT", help="sizes of data, fsdp and tensor over the devices of a host; default: all data"
    )
    parser.add_argument("--engine", default="local", help=ENGINE_HELP)
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="with --engine ray: most processes, each with a copy of the model; default: one per GPU, or one per node "
        "of a cluster without GPUs",
    )
    add_distributed_flags(parser)
    return parser
