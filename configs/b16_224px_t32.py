"""B/16 fine-tuning: 224 px, 32 text tokens, 131 million pairs, no masking.

Command:   python scripts/train.py configs/b16_224px_t32.py --workdir runs/b16_224px_t32
Hardware:  TPU pod slice or GPUs; any number of devices that divides the batch.
Hours:     about 2 days on 8 A100 published for the nearest setting, pre-training included; not re-run here.
Expect:    63.2 % zero-shot ImageNet top-1 published after pre-training at 112 px with 16 text tokens; none for 32.
Notes:     These recipes pool the class token.
"""

from dataclasses import replace

from clipa_eqx.data.images.augment import ImageConfig
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.durations import Duration
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.experiment import DataConfig, DataSource, ExperimentConfig, InitConfig
from clipa_eqx.models.presets import preset
from clipa_eqx.optim import OptimConfig
from clipa_eqx.precision import Precision
from clipa_eqx.schedules import Cosine


def config() -> ExperimentConfig:
    batch_size = 32_768
    steps = 131_072_000 // batch_size
    warmup_steps = 26_214_400 // batch_size
    model = preset("B/16", image_size=224, length=32)
    model = replace(
        model,
        image=replace(model.image, blocks=replace(model.image.blocks, remat="full"), pool="tok"),
    )
    return ExperimentConfig(
        model=model,
        data=DataConfig(
            sources=(DataSource(folder="data/laion400m"),),
            image=ImageConfig(size=(224, 224)),
            # Per host; it changes no batch. Set it to what the hosts have.
            stream=StreamConfig(workers=32, threads=2),
        ),
        optim=OptimConfig(
            peak_lr=8e-7 * batch_size / 256,  # 1.024e-4
            schedules=((".*", Cosine(warmup=Duration(steps=warmup_steps))),),
        ),
        batch_size=batch_size,
        duration=Duration(steps=steps),
        # On a TPU the reference multiplies in bfloat16 too, but keeps activations in float32.
        precision=Precision(compute="bfloat16"),
        init=InitConfig(source="runs/b16_112px_t32"),
        eval_image=EvalImageConfig(size=(224, 224)),
        zero_shot=(
            ZeroShotConfig(
                data="data/imagenet_val",
                class_names="imagenet",
                batch_size=1024,
                every_steps=500,
            ),
        ),
        loss="sharded",
    )
