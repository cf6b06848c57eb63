"""CLIP training by the inverse scaling law, as pure Equinox modules.

The names here, and the functions of ``clipa_eqx.surgery``, are the public interface: what a config file, a training
loop, an evaluation and a data reader need. Modules below may move between versions. Each name is imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipa_eqx import surgery as surgery
    from clipa_eqx.config_files import load_config as load_config
    from clipa_eqx.data.array_record_reader import RecordSource as RecordSource
    from clipa_eqx.data.array_record_reader import open_records as open_records
    from clipa_eqx.data.array_record_writer import write_records as write_records
    from clipa_eqx.data.images.affine import AffineConfig as AffineConfig
    from clipa_eqx.data.images.augment import ImageConfig as ImageConfig
    from clipa_eqx.data.images.color import ColorConfig as ColorConfig
    from clipa_eqx.data.images.evaluation import EvalImageConfig as EvalImageConfig
    from clipa_eqx.data.manifest import Manifest as Manifest
    from clipa_eqx.data.mixture import Mixture as Mixture
    from clipa_eqx.data.prefetch import BatchIterator as BatchIterator
    from clipa_eqx.data.prefetch import StreamConfig as StreamConfig
    from clipa_eqx.data.records import Record as Record
    from clipa_eqx.data.stream import eval_stream as eval_stream
    from clipa_eqx.data.stream import train_stream as train_stream
    from clipa_eqx.data.transforms import TrainTransform as TrainTransform
    from clipa_eqx.durations import Duration as Duration
    from clipa_eqx.durations import RunLength as RunLength
    from clipa_eqx.ema import EmaConfig as EmaConfig
    from clipa_eqx.errors import CheckpointError as CheckpointError
    from clipa_eqx.errors import ClipaError as ClipaError
    from clipa_eqx.errors import ConfigError as ConfigError
    from clipa_eqx.errors import ConversionError as ConversionError
    from clipa_eqx.errors import DataError as DataError
    from clipa_eqx.errors import GuardError as GuardError
    from clipa_eqx.errors import NonFiniteError as NonFiniteError
    from clipa_eqx.errors import ShardingError as ShardingError
    from clipa_eqx.evals.contrastive import ContrastiveConfig as ContrastiveConfig
    from clipa_eqx.evals.counting import ZeroShotResult as ZeroShotResult
    from clipa_eqx.evals.encode import encode_images as encode_images
    from clipa_eqx.evals.encode import encode_texts as encode_texts
    from clipa_eqx.evals.evaluation import Evaluation as Evaluation
    from clipa_eqx.evals.evaluation import open_evaluation as open_evaluation
    from clipa_eqx.evals.evaluation import run_evaluation as run_evaluation
    from clipa_eqx.evals.few_shot import FewShotConfig as FewShotConfig
    from clipa_eqx.evals.guard import GuardConfig as GuardConfig
    from clipa_eqx.evals.linear_probe import LinearProbeConfig as LinearProbeConfig
    from clipa_eqx.evals.record_folder import score_records as score_records
    from clipa_eqx.evals.retrieval import RetrievalConfig as RetrievalConfig
    from clipa_eqx.evals.zero_shot import ZeroShotConfig as ZeroShotConfig
    from clipa_eqx.evals.zero_shot import ZeroShotTask as ZeroShotTask
    from clipa_eqx.evals.zero_shot import ZeroShotTransform as ZeroShotTransform
    from clipa_eqx.evals.zero_shot import class_embeddings as class_embeddings
    from clipa_eqx.evals.zero_shot import evaluate_zero_shot as evaluate_zero_shot
    from clipa_eqx.evals.zero_shot import prepare_zero_shot as prepare_zero_shot
    from clipa_eqx.experiment import CheckpointConfig as CheckpointConfig
    from clipa_eqx.experiment import DataConfig as DataConfig
    from clipa_eqx.experiment import DataSource as DataSource
    from clipa_eqx.experiment import ExperimentConfig as ExperimentConfig
    from clipa_eqx.experiment import WandbConfig as WandbConfig
    from clipa_eqx.losses.config import LossConfig as LossConfig
    from clipa_eqx.losses.contrastive import contrastive_loss as contrastive_loss
    from clipa_eqx.losses.pairs import ContrastiveOutput as ContrastiveOutput
    from clipa_eqx.losses.softmax import local_softmax_contrastive as local_softmax_contrastive
    from clipa_eqx.losses.softmax import sharded_softmax_contrastive as sharded_softmax_contrastive
    from clipa_eqx.losses.softmax import softmax_contrastive as softmax_contrastive
    from clipa_eqx.models.blocks import BlockConfig as BlockConfig
    from clipa_eqx.models.clip import CLIP as CLIP
    from clipa_eqx.models.clip import CLIPConfig as CLIPConfig
    from clipa_eqx.models.presets import PRESETS as PRESETS
    from clipa_eqx.models.presets import preset as preset
    from clipa_eqx.models.text import TextConfig as TextConfig
    from clipa_eqx.models.text import TextTower as TextTower
    from clipa_eqx.models.vision import VisionConfig as VisionConfig
    from clipa_eqx.models.vision import VisionTower as VisionTower
    from clipa_eqx.optim import DEFAULT_DECAY as DEFAULT_DECAY
    from clipa_eqx.optim import T5X_DECAY as T5X_DECAY
    from clipa_eqx.optim import OptimConfig as OptimConfig
    from clipa_eqx.optim import layer_decay_rules as layer_decay_rules
    from clipa_eqx.optim import make_optimizer as make_optimizer
    from clipa_eqx.precision import Precision as Precision
    from clipa_eqx.recipes import finetune_stage as finetune_stage
    from clipa_eqx.recipes import pretrain_stage as pretrain_stage
    from clipa_eqx.recipes import small_stage as small_stage
    from clipa_eqx.recipes import stage_model as stage_model
    from clipa_eqx.saved.adapters import load_adapters as load_adapters
    from clipa_eqx.saved.adapters import save_adapters as save_adapters
    from clipa_eqx.saved.model import LoadedModel as LoadedModel
    from clipa_eqx.saved.model import ModelTokenizer as ModelTokenizer
    from clipa_eqx.saved.model import Preprocess as Preprocess
    from clipa_eqx.saved.model import load_model as load_model
    from clipa_eqx.saved.model import save_model as save_model
    from clipa_eqx.saved.provenance import Provenance as Provenance
    from clipa_eqx.schedules import Cosine as Cosine
    from clipa_eqx.schedules import Polynomial as Polynomial
    from clipa_eqx.schedules import Rsqrt as Rsqrt
    from clipa_eqx.schedules import Stair as Stair
    from clipa_eqx.search.exact import Best as Best
    from clipa_eqx.search.exact import best_rows as best_rows
    from clipa_eqx.search.index import SearchIndex as SearchIndex
    from clipa_eqx.search.index import open_embeddings as open_embeddings
    from clipa_eqx.sharding import MeshConfig as MeshConfig
    from clipa_eqx.sharding import make_mesh as make_mesh
    from clipa_eqx.sharding import shardings_for as shardings_for
    from clipa_eqx.surgery.init_config import InitConfig as InitConfig
    from clipa_eqx.tokenizer.train import train_wordpiece as train_wordpiece
    from clipa_eqx.tokenizer.wordpiece import Tokenizer as Tokenizer
    from clipa_eqx.tokenizer.wordpiece import Tokens as Tokens
    from clipa_eqx.training.loop import TrainResult as TrainResult
    from clipa_eqx.training.loop import train as train
    from clipa_eqx.training.stopping import Interrupted as Interrupted
    from clipa_eqx.trees import count_params as count_params
    from clipa_eqx.trees import from_leaves as from_leaves
    from clipa_eqx.trees import leaf_paths as leaf_paths
    from clipa_eqx.trees import leaves_by_path as leaves_by_path

__version__ = "0.2.0.dev0"

_HOME = {
    "AffineConfig": "data.images.affine",
    "BatchIterator": "data.prefetch",
    "Best": "search.exact",
    "BlockConfig": "models.blocks",
    "CLIP": "models.clip",
    "CLIPConfig": "models.clip",
    "CheckpointConfig": "experiment",
    "CheckpointError": "errors",
    "ClipaError": "errors",
    "ColorConfig": "data.images.color",
    "ConfigError": "errors",
    "ContrastiveConfig": "evals.contrastive",
    "ContrastiveOutput": "losses.pairs",
    "ConversionError": "errors",
    "Cosine": "schedules",
    "DEFAULT_DECAY": "optim",
    "DataConfig": "experiment",
    "DataError": "errors",
    "DataSource": "experiment",
    "Duration": "durations",
    "EmaConfig": "ema",
    "EvalImageConfig": "data.images.evaluation",
    "Evaluation": "evals.evaluation",
    "ExperimentConfig": "experiment",
    "FewShotConfig": "evals.few_shot",
    "GuardConfig": "evals.guard",
    "GuardError": "errors",
    "ImageConfig": "data.images.augment",
    "InitConfig": "surgery.init_config",
    "Interrupted": "training.stopping",
    "LinearProbeConfig": "evals.linear_probe",
    "LoadedModel": "saved.model",
    "LossConfig": "losses.config",
    "Manifest": "data.manifest",
    "MeshConfig": "sharding",
    "Mixture": "data.mixture",
    "ModelTokenizer": "saved.model",
    "NonFiniteError": "errors",
    "OptimConfig": "optim",
    "PRESETS": "models.presets",
    "Polynomial": "schedules",
    "Precision": "precision",
    "Preprocess": "saved.model",
    "Provenance": "saved.provenance",
    "Record": "data.records",
    "RecordSource": "data.array_record_reader",
    "RetrievalConfig": "evals.retrieval",
    "Rsqrt": "schedules",
    "RunLength": "durations",
    "SearchIndex": "search.index",
    "ShardingError": "errors",
    "Stair": "schedules",
    "StreamConfig": "data.prefetch",
    "T5X_DECAY": "optim",
    "TextConfig": "models.text",
    "TextTower": "models.text",
    "Tokenizer": "tokenizer.wordpiece",
    "Tokens": "tokenizer.wordpiece",
    "TrainResult": "training.loop",
    "TrainTransform": "data.transforms",
    "VisionConfig": "models.vision",
    "VisionTower": "models.vision",
    "WandbConfig": "experiment",
    "ZeroShotConfig": "evals.zero_shot",
    "ZeroShotResult": "evals.counting",
    "ZeroShotTask": "evals.zero_shot",
    "ZeroShotTransform": "evals.zero_shot",
    "best_rows": "search.exact",
    "class_embeddings": "evals.zero_shot",
    "contrastive_loss": "losses.contrastive",
    "count_params": "trees",
    "encode_images": "evals.encode",
    "encode_texts": "evals.encode",
    "eval_stream": "data.stream",
    "evaluate_zero_shot": "evals.zero_shot",
    "finetune_stage": "recipes",
    "from_leaves": "trees",
    "layer_decay_rules": "optim",
    "leaf_paths": "trees",
    "leaves_by_path": "trees",
    "load_adapters": "saved.adapters",
    "load_config": "config_files",
    "load_model": "saved.model",
    "local_softmax_contrastive": "losses.softmax",
    "make_mesh": "sharding",
    "make_optimizer": "optim",
    "open_embeddings": "search.index",
    "open_evaluation": "evals.evaluation",
    "open_records": "data.array_record_reader",
    "prepare_zero_shot": "evals.zero_shot",
    "preset": "models.presets",
    "pretrain_stage": "recipes",
    "run_evaluation": "evals.evaluation",
    "save_adapters": "saved.adapters",
    "save_model": "saved.model",
    "score_records": "evals.record_folder",
    "sharded_softmax_contrastive": "losses.softmax",
    "shardings_for": "sharding",
    "small_stage": "recipes",
    "softmax_contrastive": "losses.softmax",
    "stage_model": "recipes",
    "train": "training.loop",
    "train_stream": "data.stream",
    "train_wordpiece": "tokenizer.train",
    "write_records": "data.array_record_writer",
}


def __getattr__(name: str) -> Any:
    # Worker processes that decode images import this package too: nothing here may start jax, orbax or grain.
    if name == "surgery":
        return importlib.import_module("clipa_eqx.surgery")
    if name in _HOME:
        return getattr(importlib.import_module(f"clipa_eqx.{_HOME[name]}"), name)
    raise AttributeError(f"module 'clipa_eqx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_HOME, "surgery", "__version__"])
