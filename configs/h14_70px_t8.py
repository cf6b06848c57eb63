"""H/14 pre-training: 70 px (25 patches), 8 text tokens, 12.8 billion pairs.

Command:   python scripts/train.py configs/h14_70px_t8.py --workdir runs/h14_70px_t8
Hardware:  TPU pod slice; laid out for 512 TPU v3 cores (16 GB each). Any number of devices that is a multiple of 8
           works.
Hours:     5,920 A100 hours published for this stage on DataComp-1B and the one at 224 px together; not re-run here.
Expect:    70.1 % zero-shot ImageNet top-1 with LAION-2B; 81.1 % after the stage at 224 px with DataComp-1B.
           Published by the reference, not re-run here.
Notes:     Captions and prompts are cut to 8 tokens by part of speech (nouns first), as the reference trains and
           scores.
"""

from dataclasses import replace

from clipa_eqx.data.images.augment import ImageConfig
from clipa_eqx.data.images.color import ColorConfig
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.durations import Duration
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.experiment import DataConfig, DataSource, ExperimentConfig
from clipa_eqx.models.presets import preset
from clipa_eqx.optim import OptimConfig
from clipa_eqx.precision import Precision
from clipa_eqx.schedules import Cosine
from clipa_eqx.sharding import MeshConfig


def config() -> ExperimentConfig:
    batch_size = 65_536
    # 10,000 times the 1,281,167 pictures of ImageNet: 12.8 billion pairs.
    steps = 10_000 * 1_281_167 // batch_size
    model = preset("H/14", image_size=70, length=8)
    model = replace(
        model,
        image=replace(model.image, blocks=replace(model.image.blocks, remat="full")),
    )
    return ExperimentConfig(
        model=model,
        data=DataConfig(
            sources=(DataSource(folder="data/laion2b"),),
            image=ImageConfig(size=(70, 70), color=ColorConfig()),
            text_reduction="syntax",
            # Per host; it changes no batch. Set it to what the hosts have.
            stream=StreamConfig(workers=32, threads=2),
        ),
        optim=OptimConfig(
            peak_lr=8e-6 * batch_size / 256,  # 2.048e-3
            schedules=((".*", Cosine(warmup=Duration(steps=3200))),),
            mu_dtype="bfloat16",
        ),
        batch_size=batch_size,
        duration=Duration(steps=steps),
        # Parameters and both moments take 9 GiB; each device holds an eighth.
        mesh=MeshConfig(fsdp=8),
        # On a TPU the reference multiplies in bfloat16 too, but keeps activations in float32.
        precision=Precision(compute="bfloat16"),
        eval_image=EvalImageConfig(size=(70, 70)),
        zero_shot=(
            ZeroShotConfig(
                data="data/imagenet_val",
                class_names="imagenet",
                batch_size=1024,
                text_reduction="syntax",
                every_steps=1000,
            ),
        ),
        loss="sharded",
    )
