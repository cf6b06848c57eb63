"""bigG/14 pre-training: 70 px (25 patches), 8 text tokens, 12.8 billion pairs.

Command:   python scripts/train.py configs/bigg14_70px_t8.py --workdir runs/bigg14_70px_t8
Hardware:  TPU pod slice; laid out for 512 TPU v3 cores (16 GB each). Any number of devices that is a multiple of 16
           works.
Hours:     21,998 A100 hours published for 12.8 billion pairs at 84 px and the stage at 224 px together; not re-run
           here.
Expect:    no number published at 70 px, which is what the reference's file says; its tables say 84 px and 78.5 %
           zero-shot ImageNet top-1 with DataComp-1B.
Notes:     Both towers start with normally distributed weights, as in the t5x branch; residual scales use the true
           depth, the branch the constant 12. Captions and prompts are cut to 8 tokens by part of speech (nouns
           first), as the reference trains and scores.
"""

from dataclasses import replace

from clipa_eqx.data.images.augment import ImageConfig
from clipa_eqx.data.images.color import ColorConfig
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.durations import Duration
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.experiment import CheckpointConfig, DataConfig, DataSource, ExperimentConfig
from clipa_eqx.models.presets import preset
from clipa_eqx.optim import OptimConfig
from clipa_eqx.precision import Precision
from clipa_eqx.schedules import Cosine
from clipa_eqx.sharding import MeshConfig


def config() -> ExperimentConfig:
    batch_size = 65_536
    # 10,000 times the 1,281,167 pictures of ImageNet: 12.8 billion pairs.
    steps = 10_000 * 1_281_167 // batch_size
    model = preset("bigG/14", image_size=70, length=8)
    model = replace(
        model,
        image=replace(model.image, blocks=replace(model.image.blocks, remat="full", init="scaled")),
        text=replace(model.text, blocks=replace(model.text.blocks, remat="full")),
    )
    return ExperimentConfig(
        model=model,
        data=DataConfig(
            sources=(DataSource(folder="data/datacomp1b"),),
            image=ImageConfig(size=(70, 70), color=ColorConfig()),
            text_reduction="syntax",
            # Per host; it changes no batch. Set it to what the hosts have.
            stream=StreamConfig(workers=32, threads=2),
        ),
        optim=OptimConfig(
            peak_lr=4e-6 * batch_size / 256,  # 1.024e-3
            # As the reference's t5x branch, which trained bigG/14: all but norms, biases, positions and temperature.
            decay=((r"(.*/)?(norm[12]?/weight|bias|position|log_temperature)", 0.0), (".*", 1.0)),
            schedules=((".*", Cosine(warmup=Duration(steps=3200))),),
            mu_dtype="bfloat16",
        ),
        batch_size=batch_size,
        duration=Duration(steps=steps),
        # Parameters and both moments take 23 GiB; each device holds a sixteenth.
        mesh=MeshConfig(fsdp=16),
        # On a TPU the reference multiplies in bfloat16 too, but keeps activations in float32.
        precision=Precision(compute="bfloat16"),
        eval_image=EvalImageConfig(size=(70, 70)),
        zero_shot=(
            ZeroShotConfig(
                data="data/imagenet_val",
                class_names="imagenet",
                batch_size=1024,
                text_reduction="syntax",
                every_steps=4000,
            ),
        ),
        checkpoint=CheckpointConfig(every_steps=2000),
        loss="sharded",
    )
