"""Import of t5x checkpoints: notes in log and provenance, and refusals, as for checkpoints of the main branch."""

import re

import numpy as np
import pytest
from support.t5x_folders import convert, inline, write_checkpoint, write_index

from clipa_eqx.cli import run
from clipa_eqx.errors import ClipaError, ConversionError
from clipa_eqx.saved.model import load_model
from conversion.flax_clipa.__main__ import main as flax
from conversion.t5x.__main__ import main

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_log_and_provenance_say_what_a_resume_needs(arrays, vocab, tmp_path, caplog):
    leaves = write_checkpoint(tmp_path / "checkpoint_3", arrays, stored=0)
    leaves["state/param_states/0/count"] = inline(np.asarray(40, np.int32), code=3)
    write_index(tmp_path / "checkpoint_3", leaves)
    with caplog.at_level("INFO"):
        convert(tmp_path / "checkpoint_3", tmp_path / "model", vocab)
    notes = load_model(tmp_path / "model").provenance.config_notes
    for words in (
        "weight decay: the t5x trainer also decays the token table and the class token",
        "Adam has counted 40 updates, the schedules 3: this trainer keeps",
        "preprocess: squash, a default that no file determines",
    ):
        assert any(message.startswith(words) for message in caplog.messages)
        assert any(note.startswith(words) for note in notes)
    assert any(
        message.startswith("optimizer state of step 3: resume from it with `") and "--init-from" in message
        for message in caplog.messages
    )
    caplog.clear()
    with caplog.at_level("INFO"):
        convert(tmp_path / "checkpoint_3", tmp_path / "weights", vocab, "--no-optimizer")
    assert not any("weight decay" in message or "optimizer" in message for message in caplog.messages)
    caplog.clear()
    flax(["export", str(tmp_path / "model"), str(tmp_path / "out.npz")])
    assert any(message.startswith("Adam has counted 40 updates, the schedules 3") for message in caplog.messages)


def test_with_a_wrong_config_the_tensors_to_blame_are_listed(arrays, vocab, tmp_path, capsys):
    write_checkpoint(tmp_path / "checkpoint_3", arrays, stored=0)
    folders = str(tmp_path / "checkpoint_3"), str(tmp_path / "model")
    argv = ["import", *folders, "--preset", "H/14", "--vocab", str(vocab)]
    assert run(lambda: main(argv)) == 2
    said = capsys.readouterr().err
    assert "image.blocks.width: 32 from the file" in said
    assert re.search(r"missing: img/Transformer/encoderblock_\d+/LayerNorm_0/scale \(1280,\) for image/blocks", said)
    assert re.search(r"\.\.\. and \d+ more", said)
    assert len(said.splitlines()) < 110


@pytest.mark.parametrize("inside", ["model", "a/b"])
def test_a_model_is_not_written_into_the_checkpoint_it_comes_from(inside, arrays, vocab, tmp_path):
    write_checkpoint(tmp_path / "checkpoint_3", arrays, stored=0)
    with pytest.raises(ClipaError, match="would be inside the source"):
        convert(tmp_path / "checkpoint_3", tmp_path / "checkpoint_3" / inside, vocab)
    assert [path.name for path in (tmp_path / "checkpoint_3").iterdir()] == ["checkpoint"]


def test_a_negative_second_moment_is_refused(arrays, vocab, tmp_path):
    leaves = write_checkpoint(tmp_path / "checkpoint_3", arrays, stored=0)
    leaves["state/param_states/0/nu/t"] = inline(np.full(1, -1, np.float32))
    write_index(tmp_path / "checkpoint_3", leaves)
    with pytest.raises(ConversionError, match="negative: t for log_temperature"):
        convert(tmp_path / "checkpoint_3", tmp_path / "model", vocab)
